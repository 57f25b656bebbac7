"""Losses: published values and gradients, cases by hand, and batches without anything."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import solo_d2.losses as losses_module
from solo_d2.losses import (
    bce_loss,
    build_mask_loss,
    dice_loss,
    focal_loss,
    mask_focal_loss,
    solo_losses,
)
from solo_d2.structures import GridTargets
from solo_d2.targets import assign_grid_targets
from tests.fakes import kernel_outputs
from tests.golden import levels, load_golden
from tests.reference.targets import downsample_as_published
from tools.benchmarks.head_outputs import KernelHead

GOLDEN = load_golden("solov2_loss")
STRIDES = [4] * 5


def golden_inputs():
    logits = [x.requires_grad_() for x in levels(GOLDEN, "cate_logits")]
    kernels = [x.requires_grad_() for x in levels(GOLDEN, "kernel_pred")]
    return kernel_outputs(logits, kernels, GOLDEN["mask_pred"].requires_grad_())


def golden_targets(images=(0, 1, 2)):
    names = ("gt_boxes", "gt_classes", "gt_masks")
    padded_size = tuple(GOLDEN["padded_size"].tolist())
    targets = assign_grid_targets(
        *([GOLDEN[f"img{b}.{name}"] for b in images] for name in names),
        padded_size=padded_size,
        num_grids=GOLDEN["num_grids"].tolist(),
        scale_ranges=GOLDEN["scale_ranges"].tolist(),
        mask_strides=STRIDES,
        num_classes=5,
    )
    masks = [downsample_as_published(GOLDEN[f"img{b}.gt_masks"], padded_size) for b in images]
    return replace(targets, masks={4: torch.cat(masks)})


def losses_of(outputs, targets):
    return solo_losses(outputs, targets, head=KernelHead(STRIDES))


def assert_gradients(tensors, name):
    for level, tensor in enumerate(tensors):
        expected = GOLDEN[f"grad.{name}.{level}"]
        scale = expected.abs().max().item()
        torch.testing.assert_close(tensor.grad, expected, rtol=0, atol=1e-4 * scale)


def test_values_and_gradients_equal_published():
    outputs = golden_inputs()
    losses = losses_of(outputs, golden_targets())
    torch.testing.assert_close(losses["loss_mask"], GOLDEN["loss_ins"], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses["loss_cls"], GOLDEN["loss_cate"], rtol=1e-5, atol=0)
    sum(losses.values()).backward()
    assert_gradients(outputs.class_logits, "cate_logits")
    assert_gradients(outputs.kernel_params, "kernel_pred")
    expected = GOLDEN["grad.mask_pred"]
    scale = expected.abs().max().item()
    torch.testing.assert_close(outputs.mask_feature.grad, expected, rtol=0, atol=1e-4 * scale)


def test_dice_by_hand():
    probs = torch.tensor([[[1.0, 0.5], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    masks = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 0]]]).bool()
    expected = [1 - 2 * 1.5 / (1.25 + 0.001 + 2 + 0.001), 1.0]
    assert dice_loss(probs, masks).tolist() == pytest.approx(expected)


def test_focal_by_hand():
    logits = torch.tensor([[0.0, 2.0]])
    p = torch.sigmoid(torch.tensor(2.0)).item()
    positive = 0.25 * 0.5**2 * -torch.tensor(0.5).log().item()
    negative = 0.75 * p**2 * -torch.tensor(1 - p).log().item()
    loss = focal_loss(logits, torch.tensor([0]), alpha=0.25, gamma=2.0)
    assert loss.item() == pytest.approx(positive + negative, rel=1e-5)
    background = focal_loss(logits, torch.tensor([2]), alpha=0.25, gamma=2.0)
    assert background.item() == pytest.approx(0.75 * 0.25 * -torch.tensor(0.5).log() + negative)


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_focal_of_huge_logits_is_finite(logit):
    logits = torch.full((2, 3), logit, requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, 3]), alpha=0.25, gamma=2.0)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_half_precision_is_summed_in_float32():
    masks = torch.ones(1, 400, 400, dtype=torch.bool)
    probs = torch.full((1, 400, 400), 0.5, dtype=torch.float16)
    loss = dice_loss(probs, masks)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1 - 2 * 0.5 / 1.25, rel=1e-5)


def test_no_positive_gives_zero_with_gradients_everywhere():
    outputs = golden_inputs()
    for tensor in [*outputs.class_logits, *outputs.kernel_params, outputs.mask_feature]:
        tensor.grad = None
    targets = golden_targets(images=(2, 2, 2))  # one instance without a pixel each
    assert len(targets.cells) == 0
    losses = losses_of(outputs, targets)
    assert losses["loss_mask"].item() == 0
    sum(losses.values()).backward()
    for tensor in [*outputs.kernel_params, outputs.mask_feature]:
        assert tensor.grad is not None
        assert not tensor.grad.any()
    assert all(tensor.grad.any() for tensor in outputs.class_logits)


def test_weights_scale_the_losses():
    outputs, targets = golden_inputs(), golden_targets()
    plain = losses_of(outputs, targets)
    head = KernelHead(STRIDES)
    doubled = solo_losses(outputs, targets, head=head, cls_weight=2.0, mask_weight=6.0)
    for name, loss in plain.items():
        torch.testing.assert_close(doubled[name], 2 * loss)


@pytest.mark.parametrize("memory_mib", [0, 1])
def test_memory_changes_no_loss(memory_mib):
    results = []
    for memory in (memory_mib, 1 << 10):
        outputs = golden_inputs()
        inputs = [*outputs.class_logits, *outputs.kernel_params, outputs.mask_feature]
        for tensor in inputs:
            tensor.grad = None
        head = KernelHead(STRIDES)
        losses = solo_losses(outputs, golden_targets(), head=head, memory_mib=memory)
        sum(losses.values()).backward()
        results.append([*losses.values(), *(tensor.grad.clone() for tensor in inputs)])
    for small, large in zip(*results, strict=True):
        torch.testing.assert_close(small, large, rtol=1e-5, atol=1e-7)


def test_memory_depends_on_the_device():
    found = [losses_module._memory(None, torch.device(name)) >> 20 for name in ("cpu", "cuda:1")]
    assert found == [64, 1024]


def test_class_loss_is_made_part_by_part(monkeypatch):
    sizes = []

    def recorded(logits, classes, **params):
        sizes.append(len(logits))
        return focal_loss(logits, classes, **params)

    monkeypatch.setattr(losses_module, "focal_loss", recorded)
    logits, classes = [torch.randn(2, 3, 4, 4)], torch.randint(4, (2, 16))
    with torch.no_grad():
        total = losses_module.class_loss_sum(logits, classes, alpha=0.25, gamma=2.0, memory_mib=0)
    assert sizes == [1] * 32
    flat = logits[0].permute(0, 2, 3, 1).reshape(-1, 3)
    expected = focal_loss(flat, classes.flatten(), alpha=0.25, gamma=2.0)
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_huge_masks_are_finite(dtype):
    """Half a million pixels: their number is no float16, and bfloat16 stops counting at 256."""
    size = (704, 704)
    feature = torch.full((1, 1, *size), 0.5, requires_grad=True)
    kernels = [torch.full((1, 1, 1, 1), 20.0, requires_grad=True)]
    outputs = kernel_outputs([torch.zeros(1, 1, 1, 1)], kernels, feature)
    targets = GridTargets(
        classes=torch.zeros(1, 1, dtype=torch.int64),
        cells=torch.tensor([0]),
        instances=torch.tensor([0]),
        num_samples=((1,),),
        masks={4: torch.ones(1, *size, dtype=torch.bool)},
        num_positive_cells=1,
        num_conflicts=0,
    )
    with torch.autocast("cpu", dtype):
        loss = solo_losses(outputs, targets, head=KernelHead([4]))["loss_mask"]
    loss.backward()
    assert 0 <= loss.item() < 1e-3  # all right
    assert feature.grad.isfinite().all()
    assert kernels[0].grad.isfinite().all()


LOGITS = torch.linspace(-4, 4, 24).view(2, 3, 4)
MASKS = (torch.arange(24) % 3 == 0).view(2, 3, 4)


def test_bce_equals_that_of_the_logits():
    expected = F.binary_cross_entropy_with_logits(
        LOGITS, MASKS.float(), pos_weight=torch.tensor(2.0), reduction="none"
    ).mean(dim=(1, 2))
    torch.testing.assert_close(bce_loss(LOGITS.sigmoid(), MASKS), expected)


def test_mask_focal_loss_equals_the_class_focal_loss():
    columns = LOGITS.view(2, -1, 1)
    classes = (~MASKS).long().view(2, -1)  # the mask is class 0, 1 is background
    expected = [
        focal_loss(x, c, alpha=0.3, gamma=1.5) / 12 for x, c in zip(columns, classes, strict=True)
    ]
    ours = mask_focal_loss(LOGITS.sigmoid(), MASKS, alpha=0.3, gamma=1.5)
    torch.testing.assert_close(ours, torch.stack(expected))


@pytest.mark.parametrize("name", ["dice", "bce", "focal"])
def test_mask_losses_fall_to_zero_and_stay_finite(name):
    loss = build_mask_loss(name, {"pos_weight": 2.0, "alpha": 0.25, "gamma": 2.0})
    sure = MASKS.float()
    assert loss(sure, MASKS).abs().max() < 1e-3
    logits = torch.where(MASKS, -200.0, 200.0).requires_grad_()  # wrong beyond float32
    wrong = loss(logits.sigmoid(), MASKS)
    assert (wrong > 0.5).all()
    assert wrong.isfinite().all()
    wrong.sum().backward()
    assert logits.grad.isfinite().all()
    assert loss(torch.zeros(0, 3, 4), torch.zeros(0, 3, 4, dtype=torch.bool)).shape == (0,)


def test_a_loss_may_look_at_neighboring_pixels():
    """A loss without a form of sums gets whole masks, however little memory there is."""

    def edge_loss(mask_probs, masks):
        assert mask_probs.shape == masks.shape
        return (mask_probs.diff(dim=1) - masks.float().diff(dim=1)).square().mean(dim=(1, 2))

    outputs, targets, head = golden_inputs(), golden_targets(), KernelHead(STRIDES)
    results = [
        losses_module.mask_loss_sum(
            outputs, targets, head=head, mask_loss=edge_loss, memory_mib=memory
        )
        for memory in (0, 1 << 10)
    ]
    assert results[0] > 0
    assert results[0] == results[1]
    results[0].backward()
    assert outputs.mask_feature.grad.any()


def test_unknown_mask_loss():
    with pytest.raises(ValueError, match="'iou'.*dice, bce, focal"):
        build_mask_loss("iou", {})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_close_to_float32(dtype):
    outputs, targets = golden_inputs(), golden_targets()
    expected = losses_of(outputs, targets)
    with torch.autocast("cpu", dtype):
        found = losses_of(outputs, targets)
    for name, loss in found.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name], rtol=1e-2, atol=0)
