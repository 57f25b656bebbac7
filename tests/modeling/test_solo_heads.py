"""SOLO, Decoupled SOLO and its light head against the published ones, with their weights."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from solo_d2.inference import MaskDecoder, build_nms
from solo_d2.losses import solo_losses
from solo_d2.modeling.heads import DecoupledSOLOHead, DecoupledSOLOLightHead, SOLOHead, SOLOv2Head
from solo_d2.modeling.heads.decoupled_solo import DecoupledSOLOOutputs
from solo_d2.ops.candidates import class_probabilities
from solo_d2.ops.mask_factors import MaskFactor
from solo_d2.structures import GridCells, HeadOutputs, cell_levels
from solo_d2.targets import assign_grid_targets
from tests.fakes import FixedMasks
from tests.golden import levels, load_golden

pytestmark = pytest.mark.detectron2


FEATURES = ["p2", "p3", "p4", "p5", "p6"]
GRIDS = [6, 5, 4, 3, 2]
STRIDES = [8, 8, 16, 32, 32]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # values of size 1 to 5
HEADS = {
    "solo_head": SOLOHead,
    "decoupled_solo_head": DecoupledSOLOHead,
    "decoupled_solo_light_head": DecoupledSOLOLightHead,
}
# Published names and ours.
NAMES = (
    ("bbox_head.", ""),
    ("mask_feat_head.convs_all_levels.", "mask_feature.levels."),
    ("mask_feat_head.conv_pred.0.", "mask_feature.output."),
    ("ins_convs_x.", "column_tower."),
    ("ins_convs_y.", "row_tower."),
    ("ins_convs.", "mask_tower."),
    ("cate_convs.", "class_tower."),
    ("kernel_convs.", "kernel_tower."),
    ("dsolo_ins_list_x.", "column_logits."),
    ("dsolo_ins_list_y.", "row_logits."),
    ("solo_ins_list.", "mask_logits."),
    ("dsolo_cate.", "class_logits."),
    ("solo_cate.", "class_logits."),
    ("solo_kernel.", "kernel_params."),
    (".conv.", "."),
    (".conv", "."),
    (".gn.", ".norm."),
    ("output.conv.", "output."),
    ("output.gn.", "output.norm."),
)


def published_weights(golden):
    state = {}
    for key, value in golden.items():
        if key.startswith(("bbox_head.", "mask_feat_head.")):
            for theirs, ours in NAMES:
                key = key.replace(theirs, ours)
            state[key] = value
    return state


def make_head(head, **changes):
    shapes = {f"p{n}": ShapeSpec(channels=32, stride=2**n) for n in range(2, 7)}
    settings = {
        "in_features": FEATURES,
        "input_shape": shapes,
        "strides": STRIDES,
        "num_grids": GRIDS,
        "num_classes": 5,
        "num_convs": 2,
        "conv_dim": 32,
    }
    return head(**{**settings, **changes})


def load_head(name):
    golden = load_golden(f"{name}_forward")
    head = make_head(HEADS[name])
    head.load_state_dict(published_weights(golden), strict=True)
    return head, {key: golden[key] for key in FEATURES}, golden


def make_decoder(head, grids, strides, kernel="gaussian", **changes):
    params = {"kernel": kernel, "sigma": 2.0, "class_agnostic": False, "backend": "auto"}
    return MaskDecoder(
        head=head,
        cell_levels=cell_levels(grids),
        strides=strides.float(),
        nms=build_nms("matrix", params),
        **changes,
    )


def cells_of_level(level):
    start = sum(s * s for s in GRIDS[:level])
    return GridCells(torch.arange(start, start + GRIDS[level] ** 2), level)


@pytest.mark.parametrize("name", HEADS)
def test_class_logits_equal_published(name):
    head, features, golden = load_head(name)
    with torch.no_grad():
        outputs = head(features)
    for ours, expected in zip(outputs.class_logits, levels(golden, "cate_pred"), strict=True):
        torch.testing.assert_close(ours, expected, **CLOSE)
    probs = torch.cat([m.flatten(1, 2) for m in levels(golden, "eval.cate_pred")], dim=1)
    torch.testing.assert_close(class_probabilities(outputs.class_logits), probs, **CLOSE)


def test_solo_masks_equal_published():
    head, features, golden = load_head("solo_head")
    with torch.no_grad():
        outputs = head(features)
        for level, expected in enumerate(levels(golden, "ins_pred")):
            for image in (0, 1):
                masks = head.masks(outputs, image, cells_of_level(level))
                torch.testing.assert_close(masks, expected[image].sigmoid(), **CLOSE)
    assert [m.shape[-1] for m in outputs.mask_features] == [24, 24, 12, 6, 6]
    assert outputs.mask_size == (16, 24)
    assert head.mask_strides == (4, 4, 8, 16, 16)


@pytest.mark.parametrize("name", ["decoupled_solo_head", "decoupled_solo_light_head"])
def test_decoupled_masks_equal_published(name):
    head, features, golden = load_head(name)
    with torch.no_grad():
        outputs = head(features)
    pairs = zip(levels(golden, "ins_pred_x"), levels(golden, "ins_pred_y"), strict=True)
    for level, (columns, rows) in enumerate(pairs):
        torch.testing.assert_close(outputs.column_logits[level], columns, **CLOSE)
        torch.testing.assert_close(outputs.row_logits[level], rows, **CLOSE)
        expected = rows[1].sigmoid()[:, None] * columns[1].sigmoid()  # k = row * S + column
        masks = head.masks(outputs, 1, cells_of_level(level))
        torch.testing.assert_close(masks, expected.flatten(0, 1), **CLOSE)


@pytest.mark.parametrize("name", HEADS)
def test_masks_at_a_quarter_equal_published(name):
    head, features, golden = load_head(name)
    with torch.no_grad():
        outputs = head(features)
    decoder = make_decoder(head, GRIDS, torch.tensor(STRIDES))
    for level, side in enumerate(GRIDS):
        if name == "solo_head":
            expected = golden[f"eval.ins_pred.{level}"][0]
        else:
            columns, rows = (golden[f"eval.ins_pred_{axis}.{level}"][0] for axis in "xy")
            expected = (rows[:, None] * columns).flatten(0, 1)
        (masks,) = decoder.masks(outputs, 0, cells_of_level(level).index)
        assert masks.shape == (side**2, 16, 24)
        torch.testing.assert_close(masks, expected, **CLOSE)


def test_mmdet_solov2_light_equals_published():
    golden = load_golden("mmdet_solov2_light")
    head = make_head(
        SOLOv2Head,
        num_grids=golden["num_grids"].tolist(),
        conv_dim=64,
        mask_in_features=FEATURES[:4],
        mask_conv_dim=32,
        mask_out_channels=32,
    )
    head.load_state_dict(published_weights(golden), strict=True)
    with torch.no_grad():
        outputs = head({key: golden[key] for key in FEATURES})
    for ours, expected in zip(outputs.class_logits, levels(golden, "cate_pred"), strict=True):
        torch.testing.assert_close(ours, expected, **CLOSE)
    for ours, expected in zip(outputs.kernel_params, levels(golden, "kernel_pred"), strict=True):
        torch.testing.assert_close(ours, expected, **CLOSE)
    torch.testing.assert_close(outputs.mask_features[0], golden["mask_feat"], **CLOSE)


def golden_targets(golden, mask_strides):
    names = ("gt_boxes", "gt_labels_1based", "gt_masks")
    boxes, labels, masks = ([golden[f"img{b}.{name}"] for b in range(3)] for name in names)
    return assign_grid_targets(
        boxes,
        [x - 1 for x in labels],
        masks,
        padded_size=tuple(golden["padded_size"].tolist()),
        num_grids=GRIDS,
        scale_ranges=golden["scale_ranges"].tolist(),
        mask_strides=mask_strides,
        num_classes=5,
        cell_conflict="last",
    )


@pytest.mark.parametrize("name", HEADS)
def test_targets_equal_published(name):
    golden = load_golden(f"{name}_targets_loss")
    mask_strides = make_head(HEADS[name]).mask_strides
    targets = golden_targets(golden, mask_strides)
    start = 0
    for image in range(3):
        offset = 0
        for level, side in enumerate(GRIDS):
            label = golden[f"img{image}.cate_label.{level}"].flatten()
            ours = targets.classes[image, offset : offset + side**2]
            assert torch.equal(torch.where(ours == 5, -1, ours), label - 1)
            part = slice(start, start + targets.num_samples[image][level])
            cells, order = (targets.cells[part] - offset).sort()
            assert torch.equal(cells, golden[f"img{image}.pos_cells.{level}"])
            masks = targets.masks[mask_strides[level]][targets.instances[part][order]]
            expected = golden[f"img{image}.ins_label.{level}"]
            assert torch.equal(masks[:, :, : expected.shape[2]], expected)
            assert not masks[:, :, expected.shape[2] :].any()
            start, offset = part.stop, offset + side**2
    assert start == len(targets.cells) == targets.num_positive_cells


def golden_losses(name, golden):
    """Losses of the golden predictions, which get gradients, by our masks of a cell."""
    head = make_head(HEADS[name])
    logits = [x.requires_grad_() for x in levels(golden, "pred.cate_pred")]
    if name == "solo_head":
        maps = [[x.requires_grad_() for x in levels(golden, "pred.ins_pred")]]
        outputs = HeadOutputs(logits, (16, 24))
        # The golden maps are the output of the last convolution, of which the head picks channels.
        head.mask_factors = lambda outputs, image, cells: [
            MaskFactor(maps[0][cells.group], head.cells_of_level(cells))
        ]
    else:
        maps = [[x.requires_grad_() for x in levels(golden, f"pred.ins_pred_{a}")] for a in "xy"]
        outputs = DecoupledSOLOOutputs(logits, (16, 24), *maps)
    losses = solo_losses(outputs, golden_targets(golden, head.mask_strides), head=head)
    return losses, logits, maps


@pytest.mark.parametrize("name", HEADS)
def test_losses_and_gradients_equal_published(name):
    golden = load_golden(f"{name}_targets_loss")
    losses, logits, maps = golden_losses(name, golden)
    torch.testing.assert_close(losses["loss_mask"], golden["loss_ins"], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses["loss_cls"], golden["loss_cate"], rtol=1e-5, atol=0)
    sum(losses.values()).backward()

    def assert_close(ours, expected):
        scale = expected.abs().max().item()
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * scale + 1e-12)

    for level in range(5):
        assert_close(logits[level].grad, golden[f"grad.cate_pred.{level}"])
        if name == "solo_head":
            grad = maps[0][level].grad
            assert_close(grad.norm(), golden[f"grad.ins_pred.{level}.norm"])
            assert_close(grad.sum(dim=(2, 3)), golden[f"grad.ins_pred.{level}.chan_sum"])
        else:
            for axis, of_axis in zip("xy", maps, strict=True):
                assert_close(of_axis[level].grad, golden[f"grad.ins_pred_{axis}.{level}"])


RUNS = {
    "": {},
    "linear.": {"kernel": "linear"},
    "update0.6.": {"keep_thresh": 0.6},
    "limits.": {"pre_nms_topk": 12, "max_detections": 6},
    "empty_score.": {"score_thresh": 0.995},
    "empty_update.": {"keep_thresh": 0.9999},
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", ["solo_head", "decoupled_solo_head"])
def test_instances_equal_published(name, run):
    golden = load_golden(f"{name}_get_seg")
    grids = golden["num_grids"].tolist()
    if name == "solo_head":
        soft = torch.cat(levels(golden, "seg_pred"), dim=1)
    else:
        pairs = zip(levels(golden, "seg_pred_x"), levels(golden, "seg_pred_y"), strict=True)
        soft = torch.cat([(y[:, :, None] * x[:, None]).flatten(1, 2) for x, y in pairs], dim=1)
    head = FixedMasks(soft, (4,) * 5, (0,) * 5)
    decoder = make_decoder(head, grids, golden["strides"], **RUNS[run])
    outputs = HeadOutputs(levels(golden, "cate_logits"), tuple(golden["mask_feat_size"].tolist()))
    sizes = [
        [tuple(golden[f"img{b}.{key}"][:2].tolist()) for b in (0, 1)]
        for key in ("img_shape", "ori_shape")
    ]
    for image, found in enumerate(decoder.decode(outputs, *sizes)):
        prefix = f"{run}img{image}."
        if f"{prefix}scores" not in golden:  # published: None, or an exception
            assert run.startswith("empty")
            assert len(found.scores) == 0
            continue
        assert torch.equal(found.classes, golden[f"{prefix}labels_0based"])
        torch.testing.assert_close(found.scores, golden[f"{prefix}scores"], rtol=0, atol=1e-5)
        assert (found.masks != golden[f"{prefix}masks"]).sum() <= 5
