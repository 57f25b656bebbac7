"""Small models of every head, and comparing what they find with what their exports find."""

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

from solo_d2.export.pixels import mask_boxes
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
# A pixel of an image in which a small model finds nothing.
BLANK = [100, 110, 120]
NAMES, IDS = ["a", "b", "c", "d", "e"], [1, 2, 3, 4, 5]
# (image in the network's input, output) of images; the output is enlarged, shrunk or the same.
SIZES = [((90, 125), (90, 125)), ((170, 100), (200, 317)), ((97, 200), (33, 70))]
# Of a batch, whose padding is smaller than a cell: in the middle of a larger one neighbouring cells
# of an untrained model have the same score but for rounding, which then decides in point NMS.
BATCH_SIZES = [((90, 125), (90, 125)), ((96, 118), (200, 317)), ((84, 128), (33, 70))]


@BACKBONE_REGISTRY.register()
class OneConvEach(Backbone):
    """Features of one convolution each, so that an export takes seconds."""

    size_divisibility = 32
    strides = {"p2": 4, "p3": 8, "p5": 32}

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.channels = cfg.MODEL.FPN.OUT_CHANNELS
        for name, stride in self.strides.items():
            conv = nn.Conv2d(3, self.channels, 3, stride=stride, padding=1, bias=False)
            self.add_module(name, conv)

    def forward(self, x):
        """(B, 3, H, W) to a feature of each stride."""
        return {name: conv(x) for name, conv in self.named_children()}

    def output_shape(self):
        return {
            name: ShapeSpec(channels=self.channels, stride=stride)
            for name, stride in self.strides.items()
        }


def small_config(*overrides):
    """Two levels: one is halved, one is enlarged."""
    cfg = tiny_config()
    cfg.MODEL.BACKBONE.NAME = "OneConvEach"
    cfg.MODEL.PIXEL_MEAN = BLANK
    cfg.TEST.DETECTIONS_PER_IMAGE = 50
    solo = cfg.MODEL.SOLO
    solo.IN_FEATURES, solo.MASK_FEATURE.IN_FEATURES = ["p2", "p5"], ["p2", "p3"]
    solo.STRIDES = [8, 16]
    solo.NUM_GRIDS = [8, 5]
    solo.SCALE_RANGES = [[1, 64], [32, 512]]
    cfg.merge_from_list(list(overrides))
    return cfg


def small_model(*overrides):
    """Finds something wherever there is a pattern; as many candidates as it has enter NMS."""
    model = tiny_model(small_config(*overrides), sure=True).eval()
    nn.init.constant_(model.head.class_logits.bias, -3)
    return model


def images(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


# Of the batch that benchmarks and 8-bit convolutions are tested with.
SIZE, OUTPUT_SIZE = (120, 224), (135, 233)


def detectron2_inputs(seed=0):
    """A batch of two images as Detectron2's inputs."""
    return as_inputs(images(SIZE, SIZE, seed=seed), [OUTPUT_SIZE] * 2)


def as_inputs(batch, output_sizes):
    """Detectron2's inputs of images (H, W, 3)."""
    return [
        {"image": torch.from_numpy(image.transpose(2, 0, 1).copy()), "height": h, "width": w}
        for image, (h, w) in zip(batch, output_sizes, strict=True)
    ]


def blank(height, width):
    return np.full((height, width, 3), BLANK, np.uint8)


@torch.no_grad()
def expected_of(model, batch, output_sizes):
    """What the model finds in images (H, W, 3) that have its size and channel order."""
    return [result["instances"] for result in model(as_inputs(batch, output_sizes))]


def pipeline_detector(pipeline, info):
    """Run a pipeline without exporting it."""

    def run(inputs):
        with torch.no_grad():
            outputs = pipeline(*(torch.from_numpy(value) for value in inputs.values()))
        return {name: value.numpy() for name, value in outputs._asdict().items()}

    return Detector(run, info)


def assert_same(expected, found):
    """The same instances; those whose scores differ by rounding alone may have changed places.

    Masks but for pixels at exactly the threshold.
    """
    scores, expected_scores = found["scores"], expected.scores.numpy()
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-4)
    assert (np.diff(scores) <= 0).all()
    assert found["masks"].shape == expected.pred_masks.shape
    assert np.array_equal(found["boxes"], mask_boxes(found["masks"]))
    fits = np.abs(scores - expected_scores[:, None]) < 1e-4
    fits &= found["classes"] == expected.pred_classes.numpy()[:, None]
    for row, mask, box in zip(
        fits, expected.pred_masks.numpy(), expected.pred_boxes.tensor.numpy(), strict=True
    ):
        row[row] = (found["masks"][row] != mask).mean(axis=(1, 2)) < 1e-3
        row[row] = np.abs(found["boxes"][row] - box).max(axis=1) <= 2
    assert fits.any(axis=0).all()
    assert fits.any(axis=1).all()


def assert_detector_agrees(model, detector):
    """One by one, and as a batch of different sizes, one of them without an instance."""
    for size, output_size in SIZES:
        image = images(size)
        expected = expected_of(model, image, [output_size])[0]
        assert len(expected) > 10
        assert_same(expected, detector.detect(image, [output_size])[0])
    batch = [*images(*(size for size, _ in BATCH_SIZES)), blank(90, 120)]
    output_sizes = [*(size for _, size in BATCH_SIZES), (50, 60)]
    expected = expected_of(model, batch, output_sizes)
    assert [len(one) > 10 for one in expected] == [True, True, True, False]
    assert len(expected[-1]) == 0
    for one, found in zip(expected, detector.detect(batch, output_sizes), strict=True):
        assert_same(one, found)
