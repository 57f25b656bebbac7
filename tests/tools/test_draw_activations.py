"""The sheet of all cells' masks: each tile is its cell's mask, the right ones have a frame."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from solo_d2.api import activations as module
from solo_d2.api.activations import (
    LevelActivations,
    choose_level,
    class_colors,
    compose,
    draw_cells,
    draw_sheet,
    find_level,
    frame_width,
    level_activations,
    panel_size,
    record,
)
from solo_d2.modeling import SOLO_HEAD_REGISTRY
from solo_d2.structures import GridCells, HeadOutputs
from solo_d2.utils.errors import ConfigError
from solo_d2.visualization.colors import probability_colors
from tests.api.models import arguments
from tests.modeling.tiny import NUM_CLASSES, image, save_checkpoint, tiny_config, tiny_model
from tests.pictures import picture, save
from tools import draw_activations as command

pytestmark = pytest.mark.detectron2

HEADS = [name for name, _ in SOLO_HEAD_REGISTRY]
COLORS = class_colors(NUM_CLASSES)


def recorded(model, *samples):
    with record(model.eval()) as recording, torch.no_grad():
        model(list(samples))
    return recording


def cell_mask(model, recording, level, row, column):
    """(H, W) of one cell of the first image, padding included."""
    head = model.head
    index = sum(side**2 for side in head.num_grids[:level]) + row * head.num_grids[level] + column
    cells = GridCells(torch.tensor([index]), head.mask_groups[level])
    with torch.no_grad():
        return head.masks(recording.outputs, 0, cells)[0].numpy()


@pytest.mark.parametrize("head", HEADS)
def test_every_tile_is_the_mask_of_its_cell(head, monkeypatch):
    monkeypatch.setattr(module, "MASK_CHUNK_ELEMENTS", 7 * 24 * 32)  # several parts a level
    model = tiny_model(tiny_config(head), sure=True)
    if head == "LocalSOLOv2Head":  # masks as wide as the image
        torch.nn.init.constant_(model.head.kernel_params.bias[-1:], -10.0)
    monkeypatch.setattr(module, "SHEET", 0)
    # The first image is padded to the second one's size.
    recording = recorded(model, image(64, 96), image(96, 128))
    assert recording.image_sizes == [(64, 96), (96, 128)]
    for level, side in enumerate(model.head.num_grids):
        stride = model.head.mask_strides[level]
        height, width = 64 // stride, 96 // stride
        monkeypatch.setattr(module, "LEAST_TILE", width)
        found = level_activations(model.head, recording, level)
        assert found.feature == f"p{level + 2}"
        assert found.probs.shape == (side, side, height, width)
        for row, column in ((0, 0), (1, 2), (side - 1, side - 2)):
            mask = cell_mask(model, recording, level, row, column)
            tile = found.probs[row, column]
            # A sigmoid can differ in its last bit by where it stands in memory.
            np.testing.assert_allclose(tile, mask[:height, :width], rtol=1e-5)
            assert tile.std() > 1e-3
            logits = recording.outputs.class_logits[level][0, :, row, column]
            assert found.scores[row, column] == pytest.approx(float(logits.max().sigmoid()))
            assert found.classes[row, column] == int(logits.argmax())


@pytest.fixture(scope="module")
def sure_model():
    return tiny_model(sure=True)


def test_small_tiles_keep_proportions_and_mean(sure_model, monkeypatch):
    model = sure_model
    recording = recorded(model, image(96, 128))
    monkeypatch.setattr(module, "LEAST_TILE", 8)
    monkeypatch.setattr(module, "SHEET", 0)
    found = level_activations(model.head, recording, 2)
    assert found.probs.shape == (6, 6, 6, 8)
    mask = cell_mask(model, recording, 2, 3, 4)
    assert found.probs[3, 4].mean() == pytest.approx(mask.mean(), abs=0.05)


def test_recording_ends_with_its_block(sure_model):
    recording = recorded(sure_model, image())
    outputs = recording.outputs
    with torch.no_grad():
        sure_model.eval()([image(64, 64)])
    assert recording.outputs is outputs
    assert recording.image_sizes == [(96, 128)]


def made_by_hand(side=3, height=16, width=20):
    rng = np.random.default_rng(0)
    scores = np.zeros((side, side), dtype=np.float32)
    scores[1, 2], scores[2, 0] = 0.6, 0.3
    probs = rng.random((side, side, height, width), dtype=np.float32)
    classes = np.arange(side**2).reshape(side, side) % NUM_CLASSES
    return LevelActivations("p4", probs, scores, classes, cell_size=(1 / side, 1 / side))


def test_sheet_has_each_mask_and_frames_about_the_right_cells():
    found = made_by_hand()
    sheet = draw_sheet(found, COLORS, score_thresh=0.3)
    frame = frame_width((16, 20))
    pitch = 16 + 2 * frame + 1, 20 + 2 * frame + 1
    assert sheet.shape == (3 * pitch[0] + 1, 3 * pitch[1] + 1, 3)
    for row in range(3):
        for column in range(3):
            y, x = row * pitch[0] + 1, column * pitch[1] + 1
            cell = sheet[y : y + pitch[0] - 1, x : x + pitch[1] - 1]
            inner = cell[frame:-frame, frame:-frame]
            grey = np.rint(found.probs[row, column] * 255).astype(int)
            assert np.array_equal(inner, probability_colors()[grey])
            border = np.ones(cell.shape[:2], dtype=bool)
            border[frame:-frame, frame:-frame] = False
            framed = (row, column) == (1, 2)  # a score of the threshold is not above it
            color = COLORS[found.classes[row, column]] if framed else module.SHEET_GROUND
            assert (cell[border] == color).all()
    for line in (sheet[:: pitch[0]], sheet[:, :: pitch[1]]):
        assert (line == module.SHEET_GROUND).all()


def test_cells_are_filled_where_they_lie():
    black = np.zeros((30, 60, 3), dtype=np.uint8)
    drawn = draw_cells(black, made_by_hand(), COLORS, score_thresh=0.5)
    color = np.rint(0.55 * COLORS[5 % NUM_CLASSES])
    assert (drawn[11:20, 41:60] == color).all()  # row 1, column 2
    drawn[11:20, 41:60] = 0
    assert (drawn[[10, 20]] > 0).all()
    assert (drawn[:, [20, 40]] > 0).all()
    drawn[[10, 20]] = drawn[:, [20, 40]] = 0
    assert not drawn.any()


def test_picture_holds_input_result_and_sheet():
    found = made_by_hand(height=160, width=200)
    picture = np.full((32, 40, 3), 200, dtype=np.uint8)
    result = np.full((64, 80, 3), (10, 20, 30), dtype=np.uint8)
    names = [f"class {i}" for i in range(NUM_CLASSES)]
    whole, nothing = (
        compose(picture, result, found, names, COLORS, score_thresh=thresh) for thresh in (0.5, 0.9)
    )
    sheet = draw_sheet(found, COLORS, score_thresh=0.5)
    height, width = panel_size(found)
    assert (whole == (10, 20, 30)).all(axis=2).sum() == height * width
    assert width / height == pytest.approx(20 / 16, abs=0.05)
    bottom = sheet.shape[0] + 14 + round(1.35 * max(12, sheet.shape[1] // 64))
    place = whole[bottom - sheet.shape[0] : bottom, -14 - sheet.shape[1] : -14]
    assert np.array_equal(place, sheet)
    color = COLORS[found.classes[1, 2]]
    assert (whole[bottom + 20 :] == color).all(axis=2).any()  # the legend
    assert not (nothing[bottom + 20 :] == color).all(axis=2).any()


@pytest.mark.parametrize(
    ("sides", "level"),
    # In the ranges of two levels; of equal ones the finer; without any the highest class score.
    [((50, 60, 5), 2), ((15, 35), 1), ((15,), 0), ((), 1), ((500,), 1)],
)
def test_level_of_the_most_instances(sides, level):
    logits = [torch.full((1, 2, 3, 3), value) for value in (-3.0, -1.0, -2.0)]
    boxes = torch.tensor([[5.0, 5, 5 + side, 5 + side] for side in sides]).reshape(-1, 4)
    outputs = HeadOutputs(class_logits=logits, mask_size=(8, 8))
    assert choose_level(outputs, boxes, [[1, 20], [10, 40], [30, 100]]) == level


def test_levels_are_named_by_index_or_feature(sure_model):
    head = sure_model.head
    assert [find_level(head, name) for name in ("0", "4", "p2", "p5")] == [0, 4, 0, 3]
    for name in ("5", "-1", "p7", ""):
        with pytest.raises(ConfigError, match=r"'.*' does not exist: choose from 0 \(p2\), 1 \(p"):
            find_level(head, name)


# ---------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Arguments that name a tiny model which finds something in every image."""
    folder = tmp_path_factory.mktemp("model")
    cfg = tiny_config()
    cfg.MODEL.SOLO.HEAD.PRIOR_PROB = 0.7
    cfg.INPUT.MIN_SIZE_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = 0, 3
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    return arguments(save_checkpoint(folder, cfg, tiny_model(cfg)))


@pytest.fixture
def photos(tmp_path):
    return [save(tmp_path / f"in/{name}.png", picture(48, 64)) for name in "ab"]


def run(model, *args):
    return command.main([*model, *map(str, args)])


def test_command_writes_a_picture_of_each_image(model, photos, tmp_path):
    out = tmp_path / "out"
    assert run(model, "--input", *photos, "--output", out, "--confidence-threshold", "0") == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.png"]
    assert min(Image.open(out / "a.png").size) > 500


def test_level_decides_the_size(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAST_TILE", 120)
    monkeypatch.setattr(module, "SHEET", 0)
    sizes = []
    for level in ("p3", "3"):
        file = tmp_path / f"{level}.png"
        args = ("--level", level, "--output", file)
        assert run(model, "--input", photos[0], *args) == 0
        sizes.append(Image.open(file).size)
    # Sheets of 8 and 5 tiles of 90 x 120, frames of 5; the panels take half as much at the left.
    for size, side in zip(sizes, (8, 5), strict=True):
        assert size[0] == pytest.approx(1.5 * side * 131, rel=0.08)
        assert side * 101 < size[1] < 1.3 * side * 101


def test_images_of_a_data_set(model, tmp_path):
    names = [str(save(tmp_path / f"{index}.png", picture(48, 64))) for index in range(9)]
    DatasetCatalog.register("nine", lambda: [{"file_name": name} for name in names])
    args = ("--dataset", "nine", "--count", "3")
    assert run(model, *args, "--output", tmp_path / "out") == 0
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["0.png", "3.png", "6.png"]


def test_an_unreadable_image_leaves_the_others(model, photos, tmp_path, capsys):
    args = ("--input", __file__, *photos, "--output", tmp_path / "out")
    assert run(model, *args) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    assert "test_draw_activations.py: not an image" in capsys.readouterr().err


def test_a_data_set_without_images(model, tmp_path, capsys):
    DatasetCatalog.register("none", lambda: [])
    assert run(model, "--dataset", "none", "--output", tmp_path / "out") == 2
    assert "'none' has no images" in capsys.readouterr().err


def test_count_is_for_data_sets(photos, tmp_path):
    with pytest.raises(SystemExit):
        command.parse_args(
            ["--config-file", "c", "--input", "a.png", "--count", "2", "--output", "b"]
        )


def test_cells_are_those_of_the_whole_image(model, photos, tmp_path):
    pictures = []
    for tiles in ("0", "32"):
        file = tmp_path / f"{tiles}.png"
        args = ("--input", photos[0], "--output", file)
        assert run(model, *args, "--opts", "TEST.TILES.SIZE", tiles) == 0
        pictures.append(file.read_bytes())
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("--level", "p9"), "'p9' does not exist: choose from 0 (p2)"),
        (("--input", "nowhere.png"), "No image file matches --input nowhere.png"),
        (("--opts", "MODEL.SOLO.NO", "1"), "MODEL.SOLO.NO"),
    ],
)
def test_command_names_what_is_wrong_and_leaves_nothing(
    model, photos, tmp_path, capsys, args, reason
):
    output = tmp_path / "out.png"
    assert run(model, "--input", photos[0], "--output", output, *args) == 2
    assert reason in capsys.readouterr().err
    assert not output.exists()
