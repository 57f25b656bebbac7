"""The heads against the published ones, with their weights under the names of each project."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from solo_d2.checkpoint.formats import ADELAIDET, MMDETECTION, SOLO_AUTHORS
from solo_d2.losses import solo_losses
from solo_d2.modeling.heads import DecoupledSOLOHead, DecoupledSOLOLightHead, SOLOHead, SOLOv2Head
from solo_d2.modeling.heads.decoupled_solo import DecoupledSOLOOutputs
from solo_d2.ops.candidates import class_probabilities
from solo_d2.ops.mask_factors import MaskFactor
from solo_d2.structures import GridCells, HeadOutputs
from solo_d2.targets import assign_grid_targets
from tests import test_inference
from tests.checkpoint import published
from tests.fakes import FixedMasks
from tests.golden import levels, load_golden
from tests.test_inference import make_decoder

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
FORWARD = {
    **{f"{name}_forward": head for name, head in HEADS.items()},
    "mmdet_solov2_light": SOLOv2Head,
    "solov2_heads": SOLOv2Head,
}


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


def golden_head(name, source=SOLO_AUTHORS):
    """A head with the golden weights, its outputs of the golden features, and the golden values."""
    golden = load_golden(name)
    prefixes = ("bbox_head.", "mask_feat_head.", "ins_head.", "mask_head.")
    state = {key: value for key, value in golden.items() if key.startswith(prefixes)}
    converted = source.convert(published.newer(state) if source is MMDETECTION else state).state
    weights = {key.removeprefix("head."): value for key, value in converted.items()}
    settings = {
        "num_grids": golden["num_grids"].tolist(),
        "num_classes": len(weights["class_logits.weight"]),
        "conv_dim": len(weights["class_tower.0.weight"]),
    }
    if FORWARD[name] is SOLOv2Head:
        out, conv_dim = weights["mask_feature.output.weight"].shape[:2]
        settings |= {"mask_in_features": FEATURES[:4], "mask_conv_dim": conv_dim}
        settings |= {"mask_out_channels": out}
    head = make_head(FORWARD[name], **settings)
    head.load_state_dict(weights, strict=True)
    with torch.no_grad():
        return head, head({key: golden[key] for key in FEATURES}), golden


def cells_of_level(level):
    start = sum(s * s for s in GRIDS[:level])
    return GridCells(torch.arange(start, start + GRIDS[level] ** 2), level)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        *((name, source) for name in [*FORWARD][:4] for source in (SOLO_AUTHORS, MMDETECTION)),
        ("solov2_heads", ADELAIDET),
    ],
)
def test_outputs_equal_published(name, source):
    _, outputs, golden = golden_head(name, source)
    pairs = [("class_logits", "cate_pred")]
    if name.startswith("decoupled"):
        pairs += [("column_logits", "ins_pred_x"), ("row_logits", "ins_pred_y")]
    elif FORWARD[name] is SOLOv2Head:
        pairs += [("kernel_params", "kernel_pred")]
        feature = golden["mask_feat" if "mask_feat" in golden else "mask_pred"]
        torch.testing.assert_close(outputs.mask_features[0], feature, **CLOSE)
    for ours, theirs in pairs:
        for level, expected in zip(getattr(outputs, ours), levels(golden, theirs), strict=True):
            torch.testing.assert_close(level, expected, **CLOSE)
    if maps := levels(golden, "eval.cate_pred"):
        probs = torch.cat([m.flatten(1, 2) for m in maps], dim=1)
        torch.testing.assert_close(class_probabilities(outputs.class_logits), probs, **CLOSE)


@pytest.mark.parametrize("name", HEADS)
def test_masks_equal_published(name):
    head, outputs, golden = golden_head(f"{name}_forward")
    assert outputs.mask_size == (16, 24)
    for level in range(len(GRIDS)):
        if name == "solo_head":
            assert outputs.mask_features[level].shape[-1] == (24, 24, 12, 6, 6)[level]
            expected = golden[f"ins_pred.{level}"].sigmoid()
        else:
            columns, rows = (golden[f"ins_pred_{axis}.{level}"].sigmoid() for axis in "xy")
            expected = (rows[:, :, None] * columns[:, None]).flatten(1, 2)  # k = row * S + column
        for image in (0, 1):
            masks = head.masks(outputs, image, cells_of_level(level))
            torch.testing.assert_close(masks, expected[image], **CLOSE)


@pytest.mark.parametrize("name", HEADS)
def test_masks_at_a_quarter_equal_published(name):
    head, outputs, golden = golden_head(f"{name}_forward")
    decoder = make_decoder(GRIDS, STRIDES, head=head)
    for level, side in enumerate(GRIDS):
        if name == "solo_head":
            expected = golden[f"eval.ins_pred.{level}"][0]
        else:
            columns, rows = (golden[f"eval.ins_pred_{axis}.{level}"][0] for axis in "xy")
            expected = (rows[:, None] * columns).flatten(0, 1)
        (masks,) = decoder.masks(outputs, 0, cells_of_level(level).index)
        assert masks.shape == (side**2, 16, 24)
        torch.testing.assert_close(masks, expected, **CLOSE)


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
    "linear.": test_inference.RUNS["linear."],
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
    decoder = make_decoder(grids, golden["strides"].tolist(), head=head, **RUNS[run])
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
