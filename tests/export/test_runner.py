"""The runner: pixels as in Detectron2, masks as in the model, no torch."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from solo_d2.export import pixels, runner
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.ops.paste_masks import paste_masks

ROOT = Path(__file__).resolve().parents[2]
IMPORT_BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "detectron2", "PIL", "onnx"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Block())
"""


@pytest.mark.parametrize("seed", range(30))
def test_resizes_as_pillow(seed):
    rng = np.random.default_rng(seed)
    height, width, *size = (int(side) for side in rng.integers(1, 200, 4))
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if seed % 2:
        image = (image > 127) * np.uint8(255)

    def pillow(*size):
        return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))

    for one_side in ((size[0], width), (height, size[1]), (height, width)):
        assert np.array_equal(pixels.resize_image(image, one_side), pillow(*one_side))
    # Which axis comes first, and what is rounded in between, depends on Pillow's version.
    difference = pixels.resize_image(image, tuple(size)).astype(int) - pillow(*size)
    assert np.abs(difference).max() <= 1


@pytest.mark.detectron2
def test_sizes_are_those_of_detectron2():
    from detectron2.data.transforms import ResizeShortestEdge

    rng = np.random.default_rng(0)
    for _ in range(500):
        height, width, short = (int(x) for x in rng.integers(1, 2000, 3))
        long = int(rng.integers(short, 2 * short + 1))
        expected = ResizeShortestEdge.get_output_shape(height, width, short, long)
        found = pixels.input_size((height, width), short, long)
        assert found == tuple(max(1, side) for side in expected)
    assert pixels.input_size((7, 9), 0, 100) == (7, 9)


@pytest.mark.parametrize(
    ("image_size", "output_size"),
    [((30, 37), (30, 37)), ((30, 37), (81, 55)), ((25, 40), (9, 13)), ((1, 40), (3, 3))],
)
def test_soft_masks_are_pasted_as_in_the_model(image_size, output_size):
    probs = torch.rand(6, 8, 10, generator=torch.Generator().manual_seed(0))
    probs[1] = 0
    expected = torch.zeros(6, *output_size, dtype=torch.bool)
    paste_masks(probs, stride=4, image_size=image_size, thresh=0.5, out=expected, backend="torch")
    found = pixels.paste_masks(probs.numpy(), 4, image_size, output_size, 0.5)
    assert expected.any()
    assert np.array_equal(found, expected.numpy())
    assert np.array_equal(pixels.mask_boxes(found), mask_boxes(expected).numpy())


def test_metadata_round_trip():
    info = make_info()
    metadata = info.to_metadata()
    assert runner.ModelInfo.from_metadata({**metadata, "more": "x"}, "m") == info
    del metadata["topk"], metadata["min_size"]
    with pytest.raises(ValueError, match=r"m\.onnx.*lacks min_size, topk"):
        runner.ModelInfo.from_metadata(metadata, "m.onnx")


def make_info(**changes):
    settings = {
        "class_names": ["a"],
        "class_ids": [7],
        "input_format": "BGR",
        "pixel_mean": [0.0] * 3,
        "pixel_std": [1.0] * 3,
        "min_size": 0,
        "max_size": 0,
        "size_divisor": 32,
        "square_size": 0,
        "mask_stride": 4,
        "soft_masks": False,
        "precision": "float32",
        "topk": 10,
        "pre_nms_topk": 10,
        "max_detections": 5,
        "score_thresh": 0.1,
        "mask_thresh": 0.5,
        "keep_thresh": 0.05,
    }
    return runner.ModelInfo(**{**settings, **changes})


class Recorder:
    """A graph that notes its inputs and finds one thing of score 0.4 everywhere."""

    def __call__(self, inputs):
        self.inputs = inputs
        batch = len(inputs["images"])
        height, width = inputs["rows"].shape[1], inputs["columns"].shape[1]
        return {
            "scores": np.full((batch, 5), [0.4, 0, 0, 0, 0], np.float32),
            "classes": np.zeros((batch, 5), np.int64),
            "boxes": np.zeros((batch, 5, 4), np.float32),
            "masks": np.ones((batch, 5, height, width), np.bool_),
            "num_detections": np.ones(batch, np.int64),
            "num_candidates": np.ones(batch, np.int64),
        }


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_inputs_of_the_graph(tmp_path, order):
    graph = Recorder()
    detector = runner.Detector(graph, make_info(input_format=order, min_size=20, max_size=100))
    array = np.zeros((10, 40, 3), np.uint8)
    array[:, :, 0] = 200  # red
    cv2.imwrite(str(tmp_path / "green.png"), np.full((30, 20, 3), (0, 90, 0), np.uint8))
    first, second = detector([array, tmp_path / "green.png"])
    pixels = graph.inputs["images"]
    assert pixels.shape == (2, 3, 32, 96)
    assert graph.inputs["image_sizes"].tolist() == [[20, 80], [30, 20]]
    red = {"RGB": 0, "BGR": 2}[order]
    assert (pixels[0, red, :20, :80] == 200).all()
    assert (pixels[1, 1, :30, :20] == 90).all()
    assert pixels.sum(dtype=np.int64) == 200 * 20 * 80 + 90 * 30 * 20
    assert (first["masks"].shape, second["masks"].shape) == ((1, 10, 40), (1, 30, 20))
    assert (graph.inputs["rows"][0, 10:] == -1).all()  # outside of the smaller output
    assert len(detector([array], score_thresh=0.5)[0]["scores"]) == 0
    assert detector([]) == []


def test_a_square_model_gets_square_inputs():
    graph = Recorder()
    runner.Detector(graph, make_info(square_size=128))([np.zeros((10, 40, 3), np.uint8)])
    assert graph.inputs["images"].shape == (1, 3, 128, 128)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_no_image(array):
    with pytest.raises(ValueError, match="must be"):
        runner.Detector(Recorder(), make_info())([array])


def run_without_torch(code, *args, cwd=ROOT):
    """Run in a process where only NumPy, OpenCV and ONNX Runtime can be imported."""
    command = [sys.executable, "-c", IMPORT_BLOCKED + code, *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_needs_neither_torch_nor_detectron2():
    run_without_torch("import solo_d2.export.runner")
    with pytest.raises(AssertionError, match="torch is blocked"):
        run_without_torch("import solo_d2.export.programs")
