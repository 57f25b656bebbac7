"""Small models of every head, and comparing what they find with what their exports find."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from solo_d2.export.runner import Detector
from tests.modeling.tiny import tiny_config, tiny_model

VARIANTS = {
    "solo": ["MODEL.SOLO.HEAD.NAME", "SOLOHead"],
    "decoupled": ["MODEL.SOLO.HEAD.NAME", "DecoupledSOLOHead", "MODEL.SOLO.NMS.TYPE", "fast"],
    "decoupled light, deformable": [
        *("MODEL.SOLO.HEAD.NAME", "DecoupledSOLOLightHead", "MODEL.SOLO.HEAD.DEFORM", "v1")
    ],
    "solov2, linear": ["MODEL.SOLO.NMS.KERNEL", "linear"],
    "solov2 separate, 3x3 kernels, deformable": [
        *("MODEL.SOLO.MASK_FEATURE.TYPE", "separate", "MODEL.SOLO.MASK_FEATURE.NUM_CONVS", 1),
        *("MODEL.SOLO.HEAD.KERNEL_SIZE", 3, "MODEL.SOLO.HEAD.DEFORM", "v2"),
        *("MODEL.SOLO.HEAD.ALIGN", "region_grid", "MODEL.SOLO.NMS.CLASS_AGNOSTIC", True),
    ],
}
# (image in the network's input, output) of images; the output is enlarged, shrunk or the same.
SIZES = [((90, 125), (90, 125)), ((170, 100), (200, 317)), ((97, 200), (33, 70))]


class Pyramid(nn.Module):
    """A backbone of one convolution, so that an export takes seconds."""

    size_divisibility = 32
    padding_constraints: dict[str, int] = {}

    def __init__(self, channels=32):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, stride=2, padding=1)

    def forward(self, x):
        """(B, 3, H, W) to p2 to p6."""
        x = self.conv(x)
        features = {}
        for level in range(2, 7):
            x = F.avg_pool2d(x, 2) if level < 6 else x[:, :, ::2, ::2]
            features[f"p{level}"] = x
        return features


def small_config(*overrides):
    cfg = tiny_config()
    cfg.merge_from_list([*overrides, "TEST.DETECTIONS_PER_IMAGE", 50])
    return cfg


def small_model(*overrides):
    """Finds something in every cell; as many candidates as it has enter NMS."""
    model = tiny_model(small_config(*overrides), sure=True).eval()
    model.backbone = Pyramid()
    return model


def images(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@torch.no_grad()
def expected_of(model, batch, output_sizes):
    """What the model finds in images (H, W, 3) that have its size and channel order."""
    inputs = [
        {
            "image": torch.from_numpy(image.transpose(2, 0, 1).astype("float32")),
            "height": size[0],
            "width": size[1],
        }
        for image, size in zip(batch, output_sizes, strict=True)
    ]
    return [result["instances"] for result in model(inputs)]


def pipeline_detector(pipeline, info):
    """Run a pipeline without exporting it."""

    def run(inputs):
        with torch.no_grad():
            outputs = pipeline(*(torch.from_numpy(value) for value in inputs.values()))
        return {name: value.numpy() for name, value in outputs._asdict().items()}

    return Detector(run, info)


def assert_same(expected, found):
    """The same instances in the same order; masks but for pixels at exactly the threshold."""
    assert len(found["scores"]) == len(expected)
    assert found["classes"].tolist() == expected.pred_classes.tolist()
    np.testing.assert_allclose(found["scores"], expected.scores.numpy(), rtol=0, atol=1e-4)
    assert found["masks"].shape == expected.pred_masks.shape
    assert (found["masks"] != expected.pred_masks.numpy()).mean() < 1e-4
    assert np.abs(found["boxes"] - expected.pred_boxes.tensor.numpy()).mean() < 0.1


def assert_detector_agrees(model, detector, *, batched=True):
    """One by one, and as a batch of different sizes."""
    batch, output_sizes = images(*(size for size, _ in SIZES)), [size for _, size in SIZES]
    for image, size in zip(batch, output_sizes, strict=True):
        expected = expected_of(model, [image], [size])[0]
        assert len(expected) > 10
        assert_same(expected, detector.detect([image], [size])[0])
    if batched:
        expected = expected_of(model, batch, output_sizes)
        for one, found in zip(expected, detector.detect(batch, output_sizes), strict=True):
            assert_same(one, found)
