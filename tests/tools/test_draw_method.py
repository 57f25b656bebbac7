"""The drawings of the method show what the code assigns and finds."""

import numpy as np
import pytest
import torch
from PIL import Image

from solo_d2 import ConfigError
from solo_d2.api.activations import cell_panels
from solo_d2.data.shapes.folder import ShapesParams, ensure_shapes
from solo_d2.visualization.canvas import Panel, Plate, arrange
from tests.modeling.tiny import image, tiny_config, tiny_model
from tools import draw_method
from tools.figures import method

pytestmark = pytest.mark.detectron2

NAMES = [f"class {index}" for index in range(5)]


@pytest.fixture(scope="module")
def model():
    return tiny_model(sure=True).eval()


@pytest.fixture(scope="module")
def scene(model):
    return method.make_scene(model, image(90, 120))


def test_plate_draws_in_pixels_of_the_image():
    plate = Plate(np.zeros((4, 6, 3), np.uint8), 10)
    assert plate.picture.shape == (40, 60, 3)
    plate.fill((1, 2, 3, 3), (200, 100, 0), 0.5)
    assert (plate.picture[20:30, 10:30] == (100, 50, 0)).all()
    assert plate.picture.any(axis=2).sum() == 200
    plate.fill((-5, -5, 100, 1), (255, 255, 255), 1)  # cut at the border
    assert (plate.picture[:10] == 255).all()
    plate = Plate(np.zeros((4, 6, 3), np.uint8), 10)
    plate.grid((2, 3), 2, (255, 255, 255))
    assert [plate.picture[place].any() for place in ((20, 5), (5, 30), (5, 5))] == [1, 1, 0]
    mask = np.zeros((4, 6), bool)
    mask[1:3, 1:3] = True
    plate.tint(mask, (0, 0, 255), 1.0)
    assert plate.picture[15:25, 15:25, 2].all()
    plate.dot((5, 3), (9, 9, 9), 3)
    assert plate.picture[30, 50].tolist() == [9, 9, 9]


def test_panels_are_arranged():
    small = Panel(np.full((10, 20, 3), 7, np.uint8))
    titled = Panel(np.full((30, 20, 3), 8, np.uint8), "title", "one\ntwo lines")
    picture = arrange([[small, titled], [small]], gap=4)

    rows = np.flatnonzero((picture == 8).all(axis=2).any(axis=1))
    assert (picture[rows[0] - 20 : rows[0]] < 200).any()  # the title
    with pytest.raises(ValueError, match="no panel"):
        arrange([[]])


def test_scene_is_what_training_and_inference_see(model, scene):
    assert scene.image.shape == (96, 128, 3)  # padded
    assert (scene.image[90:] == 128).all()
    pixels = image(90, 120)["image"].flip(0).permute(1, 2, 0).numpy()  # BGR to RGB
    assert (scene.image[:90, :120] == pixels).all()
    with pytest.raises(ConfigError, match="no instance"):
        method.make_scene(model, image(num=0))


def test_filled_cells_are_the_positive_ones(model, scene):
    side = model.head.num_grids[1]
    claims = method._claims(scene.targets, model.head.num_grids, 1)
    assert claims  # this level has some
    drawn, plain = (
        method._level_plate(model, scene, 1, 512, cells).picture.astype(int)
        for cells in (claims, [])
    )
    changed = np.abs(drawn - plain).sum(axis=2) > 60
    rows = np.array_split(changed, side)
    filled = {
        (row, column)
        for row in range(side)
        for column, cell in enumerate(np.array_split(rows[row], side, axis=1))
        if cell.mean() > 0.6
    }
    first = model.head.num_grids[0] ** 2
    classes = scene.targets.classes[0, first : first + side * side].view(side, side)
    expected = {(int(i), int(j)) for i, j in (classes < 5).nonzero()}
    assert {cell for cell, _ in claims} == expected
    assert filled == expected


@pytest.mark.parametrize("name", method.PICTURES)
def test_pictures(model, scene, name):
    picture = method.PICTURES[name](model, scene, NAMES)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_nms_colours_follow_its_factor(scene):
    mask = torch.ones(24, 32, dtype=torch.bool)
    left, taken = (
        method._candidate_picture(scene, mask, 64, decay).mean((0, 1)) for decay in (1, 0)
    )
    assert left[1] > taken[1]
    assert left[0] < taken[0]


@pytest.mark.parametrize("head", ["SOLOHead", "DecoupledSOLOHead"])
def test_heads_without_kernels_show_their_masks(head):
    model = tiny_model(tiny_config(head), sure=True).eval()
    scene = method.make_scene(model, image())
    panels = cell_panels(model.head, scene.outputs, scene.image, 2, (3, 4), 100)
    assert [panel.title for panel in panels] == ["cell (3, 4) of p4", "mask probability"]
    assert method.draw_kernels(model, scene).shape[2] == 3


def test_nothing_found_is_said():
    model = tiny_model().eval()  # its class scores are about 0.01
    scene = method.make_scene(model, image())
    for name in ("kernels", "nms"):
        with pytest.raises(ConfigError, match="no detections"):
            method.PICTURES[name](model, scene, NAMES)


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    root = ensure_shapes(tmp_path / "small", ShapesParams(1, 3))
    dataset = ["mine", str(root / "annotations/instances_val.json"), str(root / "val")]
    command = [
        *("--config-file", "configs/quickstart/solov2_shapes.yaml", "--dataset", "mine"),
        *("--output", str(tmp_path / "out"), "--index"),
    ]
    opts = ["--opts", "DATASETS.COCO_FORMAT", str([dataset])]
    assert draw_method.main([*command, "0", *opts]) == 0
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["center.jpg", "targets.jpg"]
    assert Image.open(tmp_path / "out" / "targets.jpg").size[0] > 400
    assert draw_method.main([*command, "3", *opts]) == 2
    assert "images 0 to 2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        draw_method.main([*command, "0", "--pictures", "nms", *opts])
