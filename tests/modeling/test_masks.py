"""Masks of every head: by factors or without, in training and inference."""

from dataclasses import replace

import pytest
import torch

from solo_d2.modeling.heads import SOLO_HEAD_REGISTRY, DecoupledSOLOHead
from solo_d2.structures import GridCells
from tests.modeling.tiny import image, losses_of, tiny_config, tiny_model
from tests.test_inference_fixed import Watch  # noqa: E402

pytestmark = pytest.mark.detectron2


HEADS = [name for name, _ in SOLO_HEAD_REGISTRY]


def outputs_of(model):
    with torch.no_grad():
        images = model.preprocess_image([image(seed=0), image(seed=1)])
        return model.head(model.backbone(images.tensor))


def without_factors(head):
    """The head, which from now on has `forward` and `masks` alone."""

    class PlainHead(type(head)):
        def masks(self, outputs, image, cells):
            factors = super().mask_factors(outputs, image, cells)
            self.num_calls += 1
            probs = [factor.of_image(image).probs() for factor in factors]
            return probs[0] if len(probs) == 1 else probs[0] * probs[1]

        def mask_factors(self, outputs, image, cells):
            return None

    head.__class__, head.num_calls = PlainHead, 0
    return head


@pytest.mark.parametrize("cells", [[], [0], [3, 200, 3, 7]])
def test_factors_of_some_cells(cells):
    model = tiny_model(sure=True).eval()
    outputs, cells = outputs_of(model), GridCells(torch.tensor(cells, dtype=torch.int64))
    (factor,) = model.head.mask_factors(outputs, 1, cells)
    assert factor.is_product
    probs = torch.einsum("pe,ehw->phw", factor.kernels, factor.maps[1]).sigmoid()
    torch.testing.assert_close(model.head.masks(outputs, 1, cells), probs)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_without_factors_trains_and_infers_alike(name):
    """The masks of Decoupled SOLO differ: by factors, these are resized before the product."""
    results = []
    for plain in (False, True):
        model = tiny_model(tiny_config(name), sure=True)
        if plain:
            without_factors(model.head)
        losses, _ = losses_of(model, [image(num=6), image(num=0)])
        sum(losses.values()).backward()
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        found = model.eval()([image(seed=2)])[0]["instances"]
        results.append(([*losses.values(), *grads], found))
    assert model.head.num_calls > 0
    for ours, expected in zip(results[1][0], results[0][0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    by_factors, plain = (found for _, found in results)
    assert len(by_factors) == len(plain) > 0
    if not issubclass(SOLO_HEAD_REGISTRY.get(name), DecoupledSOLOHead):
        torch.testing.assert_close(plain.scores, by_factors.scores)
        assert (plain.pred_masks != by_factors.pred_masks).sum() <= 5


@pytest.mark.parametrize("config", [*HEADS, "separate", "no factors"])
def test_fixed_shapes_find_the_same_without_waiting(config, monkeypatch):
    name = {"separate": "SOLOv2Head", "no factors": "SOLOHead"}.get(config, config)
    cfg = tiny_config(name)
    cfg.MODEL.SOLO.NMS.BACKEND = cfg.MODEL.SOLO.MASK_BACKEND = "torch"
    cfg.MODEL.SOLO.MASK_FEATURE.TYPE = "separate" if config == "separate" else "unified"
    model = tiny_model(cfg, sure=True).eval()
    if config == "no factors":
        without_factors(model.head)
    outputs, sizes = outputs_of(model), [((96, 128), (60, 80))] * 2
    decoder = replace(model.decoder, lanes=2000, mask_thresh=0.4)
    assert decoder.backend == "torch"
    expected, found = (
        replace(decoder, fixed=fixed).decode(outputs, *zip(*sizes, strict=True))
        for fixed in (False, True)
    )
    for one, other in zip(found, expected, strict=True):
        assert len(one.scores) == len(other.scores) > 10
        torch.testing.assert_close(one.scores, other.scores)
        assert torch.equal(one.classes, other.classes)
        assert (one.masks != other.masks).sum() <= 5
    if config != "no factors":  # whose cells are gathered by group
        for module in ("binary_masks", "paste_masks"):  # NumPy makes them on the host
            zeros = f"solo_d2.ops.{module}.zero_masks"
            monkeypatch.setattr(zeros, lambda shape, device: torch.zeros(shape, dtype=torch.bool))
        with Watch() as watch:
            replace(decoder, fixed=True).decode_lanes(outputs, sizes[:1])
        print(f"{config}: {watch.counts.total()} operators in PyTorch alone")
