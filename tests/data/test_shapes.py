"""The generated data set: what is drawn, and that it is written atomically."""

import errno
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests.conftest import HAS_DETECTRON2

if not HAS_DETECTRON2:
    sys.modules["detectron2"] = None  # an ImportError at once: drawing and writing do without it
from solo_d2.data import whole_folder
from solo_d2.data.shapes import __main__ as command
from solo_d2.data.shapes import drawing, folder, outlines
from solo_d2.utils.errors import DatasetError

if not HAS_DETECTRON2:
    del sys.modules["detectron2"]

SMALL = folder.ShapesParams(num_train=6, num_val=3, seed=5)
# A process that writes a data set to argv[1], without the seconds that Detectron2 takes to import.
WRITER = """
import sys
sys.modules["detectron2"] = None
from solo_d2.data.shapes.folder import ShapesParams, ensure_shapes
ensure_shapes(sys.argv[1], ShapesParams(int(sys.argv[2]), 3, 5))
assert "torch" not in sys.modules
"""


def start_writer(root, num_train):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root), str(num_train)],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )


def contents(root):
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def leftovers(root):
    return [path for path in root.parent.iterdir() if path.name.startswith(f".{root.name}.tmp-")]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return folder.ensure_shapes(tmp_path_factory.mktemp("data") / "shapes", SMALL)


@pytest.fixture(scope="module")
def drawings():
    return [drawing.draw_image(0, "train", index) for index in range(12)]


# --- outlines


def test_signed_distance_of_a_square():
    square = [np.array([[-2.0, -2.0], [2.0, -2.0], [2.0, 2.0], [-2.0, 2.0]])]
    points = np.array([-3.0, -1.5, 0.0, 1.0, 5.0])
    x, y = np.abs(np.meshgrid(points, points))
    outside = np.hypot(np.maximum(x - 2, 0), np.maximum(y - 2, 0))
    expected = np.where(outside > 0, outside, np.maximum(x, y) - 2)
    np.testing.assert_allclose(outlines.signed_distance(square, points, points), expected)


@pytest.mark.parametrize("name", outlines.OUTLINES)
def test_covered_pixels_are_those_of_negative_distance(name):
    polygons = outlines.random_outline(np.random.default_rng(3), name, 31.7)
    x, y = np.arange(-30, 31) + 0.3, np.arange(-28, 30) + 0.6
    covered = outlines.covered_pixels(polygons, x, y)
    assert np.array_equal(covered, outlines.signed_distance(polygons, x, y) < 0)
    # Even-odd: crossings of the outline to the right of a pixel.
    parity = np.zeros(covered.shape, bool)
    for polygon in polygons:
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            for row in np.flatnonzero((y0 > y) != (y1 > y)):
                parity[row] ^= x0 + (y[row] - y0) * (x1 - x0) / (y1 - y0) > x
    assert np.array_equal(covered, parity)


# --- images


def test_same_arguments_same_image():
    arguments = ((3, "val", 7), (4, "val", 7), (3, "train", 7), (3, "val", 8), (3, "val", 7))
    images = [drawing.draw_image(*each).image.tobytes() for each in arguments]
    assert len(set(images)) == 4
    assert images[0] == images[-1]


def test_masks_are_the_pinned_ones(drawings):
    # Raise GENERATOR_VERSION when this changes after a release.
    masks, pixels = hashlib.sha256(), hashlib.sha256()
    for item in drawings[:8]:
        masks.update(np.packbits(item.masks).tobytes() + item.classes.tobytes())
        pixels.update(item.stuff.tobytes())
    assert folder.GENERATOR_VERSION == 1
    assert masks.hexdigest()[:16] == "577a8256a0de0cda"
    assert pixels.hexdigest()[:16] == "062bded85912f332"


def test_objects_stand_out_from_what_is_around_them(drawings):
    faint = total = 0
    kernel = np.ones((5, 5), np.uint8)
    for item in drawings:
        for mask in item.masks:
            around = cv2.dilate(mask.astype(np.uint8), kernel).astype(bool) & ~mask
            colours = [np.median(item.image[part], axis=0) for part in (mask, around)]
            faint += np.linalg.norm(colours[0] - colours[1]) < 20
            total += 1
    assert faint / total < 0.02


# --- writing


def test_annotations_equal_the_drawn_masks(small):
    for split, count in (("train", 6), ("val", 3)):
        content = json.loads((small / "annotations" / f"instances_{split}.json").read_text())
        assert [c["name"] for c in content["categories"]] == list(drawing.THING_CLASSES)
        assert len(content["images"]) == count
        ids = [annotation["id"] for annotation in content["annotations"]]
        assert len(set(ids)) == len(ids) > 0
        for index, image in enumerate(content["images"]):
            expected = drawing.draw_image(5, split, index)
            found = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            assert (image["height"], image["width"]) == expected.stuff.shape
            assert [a["category_id"] - 1 for a in found] == expected.classes.tolist()
            for annotation, mask in zip(found, expected.masks, strict=True):
                rle = annotation["segmentation"]
                assert np.array_equal(coco_mask.decode(rle), mask)
                assert (annotation["area"], annotation["iscrowd"]) == (mask.sum(), 0)
                assert annotation["bbox"] == coco_mask.toBbox(rle).tolist()
            pixels = cv2.imread(str(small / split / image["file_name"]))[..., ::-1]
            assert np.abs(pixels.astype(int) - expected.image).mean() < 6


def test_processes_write_the_same_bytes(small, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "WORTH_WORKERS", 1)
    monkeypatch.setattr(folder, "num_workers", lambda: 2)
    assert contents(folder.ensure_shapes(tmp_path / "shapes", SMALL)) == contents(small)


def test_what_is_there_is_not_made_again(small):
    before = (small / folder.STAMP).stat()
    for params, force in ((SMALL, False), (None, False), (SMALL, True)):
        assert folder.ensure_shapes(small, params, force=force) == small
    assert (small / folder.STAMP).stat() == before


def test_another_data_set_is_refused_and_replaced_by_force(small, tmp_path, monkeypatch):
    root = tmp_path / "shapes"
    shutil.copytree(small, root)
    other = folder.ShapesParams(num_train=2, num_val=1, seed=5)
    with pytest.raises(DatasetError, match=r"num_train is 6, wanted 2.*--seed 5 --force"):
        folder.ensure_shapes(root, other)
    before = contents(small)
    assert contents(root) == before
    folder.ensure_shapes(root, other, force=True)
    assert json.loads((root / folder.STAMP).read_text()) == other.stamp()
    images = {name: content for name, content in contents(root).items() if name.endswith("jpg")}
    assert len(images) == 3
    assert images.items() <= before.items()  # an image does not depend on how many there are
    assert leftovers(root) == []
    monkeypatch.setattr(folder, "GENERATOR_VERSION", 2)
    with pytest.raises(DatasetError, match="is 1, wanted 2.*--num-train 2 .*--force"):
        folder.ensure_shapes(root)


@pytest.mark.parametrize("stamp", [None, "{", '{"dataset": "mine"}'])
def test_a_folder_of_something_else_is_left_alone(tmp_path, stamp):
    root = tmp_path / "shapes"
    root.mkdir()
    (root / "mine.txt").write_text("precious")
    if stamp is not None:
        (root / folder.STAMP).write_text(stamp)
    before = contents(root)
    with pytest.raises(DatasetError, match=str(root)):
        folder.ensure_shapes(root, SMALL, force=True)
    assert contents(root) == before


def test_writers_at_once_make_one_data_set_with_the_same_bytes(small, tmp_path):
    root = tmp_path / "shapes"
    processes = [start_writer(root, 6) for _ in range(2)]
    for process in processes:  # and each of them draws what this one drew
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 0, errors
    assert contents(root) == contents(small)
    assert leftovers(root) == []


def test_without_locks_the_second_to_finish_gives_way(small, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    def write_while_another_finishes(new, split, params):
        (new / split).mkdir()
        if not root.exists():
            shutil.copytree(small, root)

    root = tmp_path / "shapes"
    monkeypatch.setattr(whole_folder.fcntl, "flock", no_locks)
    monkeypatch.setattr(folder, "_write_split", write_while_another_finishes)
    folder.ensure_shapes(root, SMALL)
    assert contents(root) == contents(small)
    assert leftovers(root) == []


def test_a_full_disk_gives_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    root = tmp_path / "shapes"
    monkeypatch.setattr(folder, "_write_image", full)
    with pytest.raises(DatasetError, match=f"cannot be written to {root}.*No space left") as caught:
        folder.ensure_shapes(root, SMALL)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [".shapes.lock"]
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written"):
        folder.ensure_shapes(tmp_path / "file" / "shapes", SMALL)


def test_the_command(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        words = ["--output", str(tmp_path / "s"), "--num-train", "2", "--num-val", "0", *arguments]
        monkeypatch.setattr(sys, "argv", ["shapes", *words])
        return command.main(), capsys.readouterr()

    code, printed = run()
    assert code == 0
    assert str(tmp_path / "s") in printed.out
    code, printed = run("--seed", "1")
    assert code == 1
    assert "error: The data set 'shapes'" in printed.err
    assert run("--seed", "1", "--force")[0] == 0
    assert run("--seed", "-1")[0] == 1


# --- registration


@pytest.mark.detectron2
def test_made_when_loaded(tmp_path, monkeypatch):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from solo_d2.data import register_shapes
    from solo_d2.data.shapes import registration

    def make(root):
        return folder.ensure_shapes(root, folder.ShapesParams(2, 2, 5))

    assert MetadataCatalog.get("shapes_val").evaluator_type == "coco"  # on import
    monkeypatch.setattr(registration, "ensure_shapes", make)
    for _ in range(2):
        register_shapes(tmp_path / "shapes")
    metadata = MetadataCatalog.get("shapes_val")
    assert len(metadata.thing_classes) == len(metadata.thing_colors) == 7
    assert list(tmp_path.iterdir()) == []
    records = DatasetCatalog.get("shapes_val")
    assert all(Path(record["file_name"]).is_file() for record in records)
    classes = [a["category_id"] for record in records for a in record["annotations"]]
    drawn = [drawing.draw_image(5, "val", index).classes for index in range(2)]
    assert classes == np.concatenate(drawn).tolist()
    assert Path(metadata.json_file).is_file()
    assert Path(metadata.image_root).is_dir()
