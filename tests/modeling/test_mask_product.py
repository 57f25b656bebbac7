"""What a head gives to inference as a product is what it gives to training as masks."""

import pytest
import torch

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from solo_d2.structures import GridCells  # noqa: E402
from tests.modeling.tiny import image, tiny_config, tiny_model  # noqa: E402


def outputs_of(model):
    with torch.no_grad():
        images = model.preprocess_image([image(seed=0), image(seed=1)])
        return model.head(model.backbone(images.tensor))


@pytest.mark.parametrize("cells", [[], [0], [3, 200, 3, 7]])
def test_product_gives_the_masks(cells):
    model = tiny_model(sure=True).eval()
    outputs, cells = outputs_of(model), GridCells(1, torch.tensor(cells, dtype=torch.int64))
    kernels, feature = model.head.mask_product(outputs, cells)
    probs = (kernels @ feature.flatten(1)).view(-1, *outputs.mask_size).sigmoid()
    torch.testing.assert_close(probs, model.head.cell_masks(outputs, cells))


def test_larger_kernels_are_no_product():
    cfg = tiny_config()
    cfg.MODEL.SOLO.HEAD.KERNEL_SIZE = 3
    model = tiny_model(cfg, sure=True).eval()
    assert model.head.mask_product(outputs_of(model), GridCells(0, torch.tensor([1, 2]))) is None
    assert len(model([image()])[0]["instances"]) > 0


@pytest.mark.parametrize("backend", ["torch", "tiled"])
def test_backend_of_the_config_is_used(backend):
    cfg = tiny_config()
    cfg.MODEL.SOLO.MASK_BACKEND = backend
    model = tiny_model(cfg, sure=True).eval()
    assert model.decoder_params["backend"] == backend
    found = model([image()])[0]["instances"]
    expected = tiny_model(sure=True).eval()([image()])[0]["instances"]
    assert len(found) == len(expected) > 0
    assert (found.pred_masks != expected.pred_masks).sum() <= 5
