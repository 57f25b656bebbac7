"""The demo from the command line, on small images and a tiny random model."""

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from demo import demo, drawing, images
from demo.predictor import find_classes
from solo_d2 import add_solo_config

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).resolve().parents[2]
EXIF_ORIENTATION = 274
TINY = """
MODEL.DEVICE cpu MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.STEM_OUT_CHANNELS 8
MODEL.RESNETS.RES2_OUT_CHANNELS 16 MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.FPN.OUT_CHANNELS 32
MODEL.SOLO.NUM_CLASSES 7 MODEL.SOLO.HEAD.NUM_CONVS 1 MODEL.SOLO.HEAD.CONV_DIM 32
MODEL.SOLO.HEAD.PRIOR_PROB 0.7 MODEL.SOLO.MASK_FEATURE.CONV_DIM 32
MODEL.SOLO.MASK_FEATURE.OUT_CHANNELS 32 MODEL.SOLO.KEEP_THRESH_TEST 0.0
MODEL.SOLO.NMS.TYPE hard TEST.DETECTIONS_PER_IMAGE 5 INPUT.MIN_SIZE_TEST 48
INPUT.MAX_SIZE_TEST 64 MODEL.SOLO.NUM_GRIDS [8,6,5,4,3] MODEL.SOLO.PRE_NMS_TOPK 20
""".split()


def make_cfg():
    cfg = get_cfg()
    add_solo_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/base/solov2_fpn.yaml"))
    cfg.merge_from_list([*TINY, "DATASETS.TEST", "('shapes_val',)", "DATASETS.TRAIN", "()"])
    return cfg


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Command line arguments that name a tiny model which finds something in every image."""
    folder = tmp_path_factory.mktemp("model")
    cfg = make_cfg()
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return [
        *("--config-file", str(folder / "config.yaml")),
        *("--weights", str(folder / "model.pth"), "--device", "cpu"),
    ]


def picture(height=48, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, array=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture() if array is None else array).save(path, **options)
    return path


def run(model, *args, threshold="0"):
    return demo.main([*model, "--confidence-threshold", threshold, *map(str, args)])


# ---------------------------------------------------------------- files in and out


def test_files_folders_and_globs_each_file_once(tmp_path):
    first, second = save(tmp_path / "b.png"), save(tmp_path / "a.JPG")
    odd = save(tmp_path / "x[1].png")
    (tmp_path / "note.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    found, missing = images.expand_inputs(
        [str(first), str(tmp_path), str(tmp_path / "*.png"), str(odd), "nowhere/*.png"]
    )
    assert found == [first, second, odd]
    assert missing == ["nowhere/*.png"]


def test_names_of_different_folders_do_not_clash():
    files = [Path(p) for p in ("x/a.jpg", "y/a.jpg", "y/A.JPG", "z/y/a.jpg", "x/a.gif", "x/b.png")]
    names = images.output_names(files)
    assert names == ["x_a.jpg", "y_a.jpg", "y_A_2.JPG", "y_a_3.jpg", "a.gif.png", "b.png"]
    assert len({name.casefold() for name in names}) == len(names)


def test_a_prefixed_name_does_not_hit_a_plain_one():
    assert images.output_names([Path("x/a.png"), Path("y/a.png"), Path("x_a.png")]) == [
        "x_a_2.png",
        "y_a.png",
        "x_a.png",
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_exif_orientation_gives_the_upright_image(tmp_path, orientation, extension):
    undo = [
        lambda a: a,
        lambda a: a[:, ::-1],
        lambda a: a[::-1, ::-1],
        lambda a: a[::-1],
        lambda a: a.transpose(1, 0, 2),
        lambda a: np.rot90(a, 1),
        lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        lambda a: np.rot90(a, -1),
    ][orientation - 1]
    upright = np.zeros((32, 48, 3), dtype=np.uint8)
    upright[:16, :16, 0] = 255  # red at the top left, green at the top right
    upright[:16, 32:, 1] = 255
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    file = save(tmp_path / f"a.{extension}", np.ascontiguousarray(undo(upright)), exif=exif)
    read = images.read_image(file)
    assert read.shape == upright.shape
    assert np.abs(read.astype(int) - upright)[4:12, 4:44].mean() < 4


def test_unknown_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 9
    assert images.read_image(save(tmp_path / "a.jpg", exif=exif)).shape == (48, 64, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_modes_become_rgb(tmp_path, mode):
    grey = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None], 48, axis=0)
    image = Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2)).convert(mode)
    extension = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    image.save(tmp_path / f"a.{extension}")
    read = images.read_image(tmp_path / f"a.{extension}")
    assert read.shape == (48, 64, 3)
    assert read.dtype == np.uint8
    assert 110 < read.mean() < 145


@pytest.mark.parametrize("depth", [10, 12, 16])
def test_16_bit_grey_looks_as_its_8_bit_version(tmp_path, depth):
    values = np.linspace(0, 2**depth - 1, 64)[None].repeat(48, axis=0)
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "a.png")
    read = images.read_image(tmp_path / "a.png")
    expected = np.linspace(0, 255, 64)[None, :, None]
    assert np.abs(read - expected).max() <= 1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-3, 1e4)])
def test_float_image_is_neither_black_nor_white(tmp_path, low, high):
    values = np.linspace(low, high, 64, dtype=np.float32)[None].repeat(48, axis=0)
    Image.fromarray(values).save(tmp_path / "a.tif")
    read = images.read_image(tmp_path / "a.tif")
    assert np.abs(read - np.linspace(0, 255, 64)[None, :, None]).max() <= 1


def _png_of_size(width, height):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def _bad_files(folder):
    """Name of each bad file, and what the message must say."""
    good = save(folder / "good.png").read_bytes()
    jpg = save(folder / "good.jpg", picture(200, 300)).read_bytes()
    nan = np.full((4, 4), np.nan, dtype=np.float32)
    Image.fromarray(nan).save(folder / "nan.tif")
    contents = {
        "empty.png": (b"", "empty"),
        "text.jpg": (b"no image at all", "not an image"),
        "half.png": (good[: len(good) // 2], "truncated"),
        "half.jpg": (jpg[: len(jpg) // 2], "truncated"),
        "bomb.png": (_png_of_size(20000, 20000), "limit"),
        "large.png": (_png_of_size(9000, 9000), "limit"),
        "start_a_program.png": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "not an image",
        ),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {name: reason for name, (_, reason) in contents.items()} | {"nan.tif": "not finite"}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_files_are_refused_with_name_and_reason(tmp_path):
    for name, reason in _bad_files(tmp_path).items():
        with pytest.raises(images.ImageError, match=reason) as error:
            images.read_image(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(images.ImageError, match="a_file_that_is_not_there"):
        images.read_image(tmp_path / "a_file_that_is_not_there.png")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with images.whole_file(target) as temporary:
        temporary.write_text("old")
        assert not target.exists()
    with pytest.raises(ZeroDivisionError), images.whole_file(target) as temporary:
        temporary.write_text(f"half of the new {1 / 0}")
    assert target.read_text() == "old"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]


# ---------------------------------------------------------------- the whole demo


def test_overlays_and_json(model, tmp_path):
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.jpg", picture(80, 40, seed=1))
    args = ("--input", tmp_path / "in", "--output", tmp_path / "out")
    assert run(model, *args, "--json", tmp_path / "all.json") == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.jpg"]
    with Image.open(tmp_path / "out" / "b.jpg") as overlay:
        assert overlay.size == (40, 80)
    drawn = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    assert np.abs(drawn.astype(int) - picture()).mean() > 5

    results = json.loads((tmp_path / "all.json").read_text())
    assert {r["image_id"] for r in results} == {0, 1}
    assert {Path(r["file_name"]).name for r in results} == {"a.png", "b.jpg"}
    assert {r["category_id"] for r in results} <= set(range(1, 8))  # ids of shapes start at 1
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 0, "height": 48, "width": 64}, {"id": 1, "height": 80, "width": 40}],
        "categories": [{"id": i} for i in range(1, 8)],
        "annotations": [],
    }
    truth.createIndex()
    loaded = truth.loadRes(results)
    for annotation in loaded.loadAnns(loaded.getAnnIds()):
        assert loaded.annToMask(annotation).any()
        box = coco_mask.toBbox(annotation["segmentation"])
        np.testing.assert_allclose(annotation["bbox"], box, atol=1e-4)


def test_threshold_filters_results_and_overlays(model, tmp_path):
    file = save(tmp_path / "a.png")
    assert run(model, "--input", file, "--json", tmp_path / "all.json") == 0
    scores = sorted(r["score"] for r in json.loads((tmp_path / "all.json").read_text()))
    assert len(scores) >= 2
    middle = (scores[0] + scores[-1]) / 2
    args = ("--input", file, "--json", tmp_path / "some.json", "--output", tmp_path / "none.png")
    assert run(model, *args, threshold=str(middle)) == 0
    kept = [r["score"] for r in json.loads((tmp_path / "some.json").read_text())]
    assert sorted(kept) == pytest.approx([s for s in scores if s >= middle])
    assert run(model, *args, threshold="1") == 0
    assert json.loads((tmp_path / "some.json").read_text()) == []
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "none.png")), picture())


def test_bad_files_are_skipped_and_listed(model, tmp_path, capsys):
    folder = tmp_path / "in"
    bad = _bad_files(folder)
    output = tmp_path / "out"
    args = ("--input", folder, tmp_path / "gone.png", "--output", output)
    assert run(model, *args, "--json", tmp_path / "all.json") == 1
    assert sorted(p.name for p in output.iterdir()) == ["good.jpg", "good.png"]
    assert len({r["image_id"] for r in json.loads((tmp_path / "all.json").read_text())}) == 2
    out, err = capsys.readouterr()
    assert "2 of 11 images" in out
    summary = err[err.index("9 failed:") :]
    assert all(name in summary for name in [*bad, "gone.png"])


def test_files_of_one_name_both_get_an_overlay(model, tmp_path):
    files = [save(tmp_path / folder / "a.png") for folder in ("x", "y")]
    assert run(model, "--input", *files, "--output", tmp_path / "out") == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["x_a.png", "y_a.png"]


def test_no_half_overlay_when_drawing_or_saving_fails(model, tmp_path, monkeypatch, capsys):
    files = [save(tmp_path / f"{name}.png") for name in "abc"]
    real_draw, real_save = drawing.draw_instances, Image.Image.save
    calls = []

    def draw(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("no more ink")
        return real_draw(*args, **kwargs)

    def half_save(self, path, **options):
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real_save(self, path, **options)

    monkeypatch.setattr(drawing, "draw_instances", draw)
    monkeypatch.setattr(Image.Image, "save", half_save)
    args = ("--input", *files, "--output", tmp_path / "out", "--json", tmp_path / "all.json")
    assert run(model, *args) == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["c.png"]
    assert {r["image_id"] for r in json.loads((tmp_path / "all.json").read_text())} == {2}
    err = capsys.readouterr().err
    assert "no more ink" in err
    assert "No space left" in err


def test_json_and_overlays_of_earlier_runs_survive_a_failing_one(model, tmp_path, monkeypatch):
    old = tmp_path / "all.json"
    old.write_text("old")
    monkeypatch.setattr(demo.json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(model, "--input", save(tmp_path / "a.png"), "--json", old)
    assert old.read_text() == "old"


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (2, 3), (1, 300), (300, 1), (2, 900)])
def test_odd_sizes(model, tmp_path, size):
    file = save(tmp_path / "a.png", picture(*size))
    args = ("--boxes", "--output", tmp_path / "b.png", "--json", tmp_path / "b.json")
    assert run(model, "--input", file, *args) == 0
    with Image.open(tmp_path / "b.png") as overlay:
        assert overlay.size == size[::-1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config-file", "gone.yaml"], "config file gone.yaml does not exist"),
        (["--weights", "gone.pth"], "weights file gone.pth does not exist"),
        (["--device", "tpu9"], "tpu9"),
        (["--opts", "MODEL.SOLO.NO_SUCH_KEY", "1"], "NO_SUCH_KEY"),
        (["--opts", "MODEL.SOLO.NUM_CLASSES"], "odd length"),
        (["--opts", "MODEL.SOLO.NUM_CLASSES", "9"], r"for 7 classes.*has 9.*NUM_CLASSES to 7"),
        (["--opts", "MODEL.META_ARCHITECTURE", "Nope"], "Nope"),
        (["--opts", "MODEL.SOLO.MASK_FEATURE.CONV_DIM", "64"], "other shapes"),
        (["--opts", "MODEL.SOLO.HEAD.NUM_CONVS", "2"], "are not in them"),
    ],
)
def test_what_cannot_start_says_so_in_one_line(model, tmp_path, capsys, args, message):
    file = save(tmp_path / "a.png")
    command = [*model, "--input", str(file), "--output", str(tmp_path / "out"), *args]
    assert demo.main(command) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err


def test_weights_that_are_no_checkpoint(model, tmp_path, capsys):
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"these are no weights")
    file = save(tmp_path / "a.png")
    assert run([*model, "--weights", str(bad)], "--input", file, "--json", tmp_path / "a.json") == 2
    assert "bad.pth can't be used" in capsys.readouterr().err


def test_nothing_matches(model, tmp_path, capsys):
    assert run(model, "--input", tmp_path / "*.png", "--output", tmp_path / "out") == 2
    assert "No image file matches" in capsys.readouterr().err


def test_output_that_cannot_be(model, tmp_path, capsys):
    first, second = save(tmp_path / "a.png"), save(tmp_path / "b.png")
    before = first.read_bytes()
    assert run(model, "--input", first, second, "--output", tmp_path / "c.png") == 2
    assert run(model, "--input", first, "--output", tmp_path) == 2
    assert run(model, "--input", first, "--output", tmp_path / "c.gif") == 2
    assert run(model, "--input", first, "--output", first / "below") == 2
    err = capsys.readouterr().err
    for part in ("is a file, but there are 2", "would replace", "PNG or JPG", "can't be made"):
        assert part in err
    assert first.read_bytes() == before


def test_without_a_display_show_says_so_and_goes_on(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    args = ("--input", save(tmp_path / "a.png"), "--output", tmp_path / "b.png", "--show")
    assert run(model, *args) == 0
    assert "no display" in capsys.readouterr().err
    assert (tmp_path / "b.png").exists()


def test_runs_as_a_program(tmp_path):
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "demo" / "demo.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ)
    assert result.returncode == 0, result.stderr
    assert "--confidence-threshold" in result.stdout


# ---------------------------------------------------------------- classes and drawing


def test_classes_of_a_coco_format_folder_that_was_never_loaded(tmp_path):
    json_file = tmp_path / "a.json"
    categories = [{"id": 30, "name": "late"}, {"id": 4, "name": "early"}]
    json_file.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    cfg = make_cfg()
    cfg.MODEL.SOLO.NUM_CLASSES = 2
    cfg.DATASETS.COCO_FORMAT = [["demo_folder", str(json_file), str(tmp_path)]]
    cfg.DATASETS.TEST = ("demo_folder",)
    try:
        classes = find_classes(cfg)
        assert (classes.names, classes.json_ids) == (["early", "late"], [4, 30])
        json_file.unlink()
        classes = find_classes(cfg)
    finally:
        DatasetCatalog.remove("demo_folder")
        MetadataCatalog.remove("demo_folder")
    assert (classes.names, classes.json_ids) == (["class 0", "class 1"], [0, 1])


def test_classes_of_another_number_are_not_used():
    cfg = make_cfg()
    assert find_classes(cfg).names[0] == "disc"
    cfg.MODEL.SOLO.NUM_CLASSES = 3
    assert find_classes(cfg).names == ["class 0", "class 1", "class 2"]


def test_drawing_is_the_same_every_time_and_scales():
    masks = torch.zeros(2, 40, 50, dtype=torch.bool)
    masks[0, 5:30, 5:30] = True  # the second mask has no pixel
    found = Instances(
        (40, 50),
        pred_masks=masks,
        pred_boxes=Boxes(torch.tensor([[5.0, 5, 30, 30], [0, 0, 0, 0]])),
        scores=torch.tensor([0.9, 0.2]),
        pred_classes=torch.tensor([1, 0]),
    )
    image = np.full((40, 50, 3), 128, dtype=np.uint8)
    first = drawing.draw_instances(image, found, ["a", "b"], scale=3)
    second = drawing.draw_instances(image, found, ["a", "b"], scale=3, draw_boxes=True)
    assert first.shape == second.shape == (120, 150, 3)
    assert (first != second).any()
    np.testing.assert_array_equal(first, drawing.draw_instances(image, found, ["a", "b"], scale=3))
    assert (first[100:, 120:] == 128).all()
    assert drawing.instance_labels(found, ["a", "b"]) == ["b 90%", "a 20%"]
