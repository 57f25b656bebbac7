"""Conversion of COCO's panoptic format: exact results, every error, whole or nothing."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tests import panoptic_files as files
from tests.conftest import HAS_DETECTRON2
from tests.json_damage import changed, gone, put

if not HAS_DETECTRON2:
    sys.modules["detectron2"] = None  # an ImportError at once: conversion does without it
from solo_d2.data import panoptic_conversion as conversion
from solo_d2.data.panoptic_json import (
    PanopticCategories,
    read_categories,
    read_segment_ids,
    write_segment_ids,
)
from solo_d2.utils.errors import DatasetError

if not HAS_DETECTRON2:
    del sys.modules["detectron2"]
from tools import convert_panoptic


def convert(root, **options):
    return conversion.ensure_converted(root / "panoptic.json", root / "panoptic", **options)


def read_instances(folder):
    return json.loads((folder / "instances.json").read_text())


def test_ids_survive_the_png(tmp_path):
    ids = np.array([[0, 1, 255], [256, 65_536, 256**3 - 1]], np.int32)
    write_segment_ids(tmp_path / "a.png", ids)
    found = read_segment_ids(tmp_path / "a.png")
    assert found.dtype == np.int32
    assert np.array_equal(found, ids)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), files.id_pixels(ids))


def test_conversion_is_exact(tmp_path):
    root = files.write(tmp_path / "data")
    folder = convert(root)
    assert folder == root / "panoptic_converted"
    assert np.array_equal(np.asarray(Image.open(folder / "stuff" / "1.png")), files.STUFF_MAP)
    assert (np.asarray(Image.open(folder / "stuff" / "2.png")) == 2).all()
    found = read_instances(folder)
    assert [(c["id"], c["name"]) for c in found["categories"]] == [(3, "cat"), (5, "dog")]
    assert [image["file_name"] for image in found["images"]] == ["1.jpg", "2.jpg"]
    cat, crowd = found["annotations"]
    assert np.array_equal(coco_mask.decode(cat["segmentation"]), files.IDS == files.CAT)
    assert np.array_equal(coco_mask.decode(crowd["segmentation"]), files.IDS == files.CROWD)
    keys = ("id", "image_id", "segment_id", "category_id", "iscrowd", "bbox", "area")
    assert [cat[key] for key in keys] == [1, 1, files.CAT, 3, 0, [0, 2, 3, 2], 6]
    assert [crowd[key] for key in keys] == [2, 1, files.CROWD, 5, 1, [3, 2, 2, 2], 4]


def test_metadata_are_detectron2s_for_separated_data_sets(tmp_path):
    root = files.write(tmp_path / "data")
    assert read_categories(root / "panoptic.json").metadata() == {
        "thing_classes": ["cat", "dog"],
        "stuff_classes": ["things", "grass", "sky"],
        "thing_dataset_id_to_contiguous_id": {3: 0, 5: 1},
        "stuff_dataset_id_to_contiguous_id": {0: 0, 9: 1, 21: 2},
        "ignore_label": 255,
    }


def test_segments_are_described_as_their_masks(tmp_path):
    rng = np.random.default_rng(0)
    for height, width, kinds in ((7, 9, 3), (1, 1, 1), (1, 30, 4), (30, 1, 4), (40, 50, 60)):
        ids = rng.integers(0, kinds + 1, (height, width)).astype(np.int32)
        ids[height // 3 :, width // 2 :] = kinds  # a large one, to the last pixel
        segments = [
            {"id": int(key), "category_id": 3, "iscrowd": int(key) % 2}
            for key in rng.permutation(np.unique(ids[ids > 0]))
        ]
        Image.fromarray(files.id_pixels(ids)).save(tmp_path / "1.png")
        annotation = {"image_id": 1, "file_name": "1.png", "segments_info": segments}
        image = {"height": height, "width": width}
        things = PanopticCategories([{"id": 3, "name": "cat"}], [])
        _, objects = conversion.describe_image(tmp_path, annotation, image, things)
        for found, segment in zip(objects, segments, strict=True):
            mask = ids == segment["id"]
            expected = conversion.describe_mask(mask) | {"iscrowd": segment["iscrowd"]}
            assert {key: found[key] for key in expected} == expected
            assert np.array_equal(coco_mask.decode(found["segmentation"]), mask)
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert (found["bbox"], found["area"]) == (box, mask.sum())


ENTRIES, PNGS = ("annotations", 0), ("annotations", 1, "file_name")
SEGMENT = (*ENTRIES, "segments_info", 1)
MORE_STUFF = [{"id": 100 + i, "name": "x", "isthing": 0} for i in range(255)]


def repainted(place, value):
    ids = files.IDS.copy()
    ids[place] = value
    return Image.fromarray(files.id_pixels(ids))


# Changes of the json, and what the message has.
JSON_ERRORS = {
    "unknown category": (put(*SEGMENT, "category_id", value=4), "segment 70000: category_id 4"),
    "category no number": (put(*SEGMENT, "category_id", value=[3]), "segment 70000: 'category_id'"),
    "segment twice": (put(*SEGMENT, "id", value=files.SKY), "image 1: segment 300: .* more than"),
    "segment 0": (put(*SEGMENT, "id", value=0), "image 1: .*entry 1 .* 'id' .* 16777215, it is 0"),
    "segment too large": (put(*SEGMENT, "id", value=256**3), "'id' .* it is 16777216"),
    "segment true": (put(*SEGMENT, "id", value=True), "'id' .* it is True"),
    "crowd null": (put(*SEGMENT, "iscrowd", value=None), "image 1: segment 70000: 'iscrowd'"),
    "no segments": (gone("annotations", 1, "segments_info"), "image 2: 'segments_info'"),
    "image twice": (put("annotations", 1, "image_id", value=1), "image 1: has more than one entry"),
    "unknown image": (put("annotations", 1, "image_id", value=6), "image 6: .*'image_id'"),
    "PNG twice": (put(*PNGS, value="1.png"), r"image 2: 'file_name' is '1\.png'"),
    "PNG without a name": (put(*PNGS, value=""), "image 2: 'file_name' must be a PNG"),
    "PNG outside": (put(*PNGS, value="../2.png"), r"image 2: 'file_name' .*'\.\./2\.png'"),
    "one stuff map of two PNGs": (put(*PNGS, value="./1.jpg"), r"image 2: .* is '\./1\.jpg'"),
    "image true": (put("images", 0, "id", value=True), "'images', entry 0 .*'id'"),
    "image without width": (gone("images", 1, "width"), "image 2: 'width'"),
    "no isthing": (gone("categories", 1, "isthing"), "category 3: 'isthing'"),
    "category 0": (put("categories", 0, "id", value=0), "'categories', entry 0 .*'id'"),
    "no things": (put("categories", value=MORE_STUFF[:2]), "'isthing'"),
    "stuff": (put("categories", value=[*files.CATEGORIES, *MORE_STUFF]), "257 stuff .*most 254"),
}
# Files of the panoptic folder in the place of the good ones; None: removed.
PNG_ERRORS = {
    "missing PNG": ("2.png", None, r"/panoptic/2\.png is missing"),
    "damaged PNG": ("2.png", b"no png", r"2\.png cannot be read: Unidentified"),
    "semantic PNG": ("2.png", Image.new("L", (6, 4)), r"2\.png has the mode 'L'"),
    "another size": ("2.png", Image.new("RGB", (4, 6)), r"2\.png has 6 x 4 pixels .* 4 x 6"),
    "not listed": ("1.png", repainted((0, 0), 77), r"1\.png .* not list: 77"),
    "absent": ("1.png", repainted(slice(2, 4), 0), r"1\.png has no pixel .*: 70000, 4"),
}


def write(root, *changes):
    (root / "panoptic.json").write_text(json.dumps(changed(files.content(), changes)))


@pytest.mark.parametrize("case", [*JSON_ERRORS, *PNG_ERRORS, "no json"])
def test_errors_name_file_and_segment_and_leave_nothing(tmp_path, case):
    root = files.write(tmp_path / "data")
    if case in JSON_ERRORS:
        change, message = JSON_ERRORS[case]
        write(root, change)
        message = rf"panoptic\.json.*{message}"
    elif case in PNG_ERRORS:
        name, content, message = PNG_ERRORS[case]
        (root / "panoptic" / name).unlink()
        if isinstance(content, bytes):
            (root / "panoptic" / name).write_bytes(content)
        elif content is not None:
            content.save(root / "panoptic" / name)
    else:
        (root / "panoptic.json").unlink()
        message = r"panoptic\.json cannot be read"
    before = sorted(root.rglob("*"))
    with pytest.raises(DatasetError, match=message) as caught:
        convert(root)
    assert "\n" not in str(caught.value)
    assert [p for p in sorted(root.rglob("*")) if not p.name.endswith(".lock")] == before


def test_done_once_until_the_json_changes(tmp_path):
    root = files.write(tmp_path / "data")
    folder = convert(root)
    (folder / "instances.json").write_text("mine")
    convert(root)
    assert (folder / "instances.json").read_text() == "mine"  # nothing was done again
    convert(root, force=True)
    assert len(read_instances(folder)["annotations"]) == 2
    write(root, put(*ENTRIES, "segments_info", 2, "category_id", value=3))
    convert(root)
    assert [a["category_id"] for a in read_instances(folder)["annotations"]] == [3, 3]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    root = files.write(tmp_path / "data")
    images = root / "images"
    with pytest.raises(DatasetError, match="exists, but is no conversion"):
        convert(root, folder=images, force=True)
    with pytest.raises(DatasetError, match="exists, but is no conversion"):
        conversion.write_stuff_maps(root / "panoptic.json", root / "panoptic", images)
    assert len(list(images.iterdir())) == 2


def test_a_folder_that_cannot_be_written_names_the_cure(tmp_path):
    root = files.write(tmp_path / "data")
    (root / "file").write_text("")
    with pytest.raises(DatasetError, match=r"convert_panoptic\.py --json .*COCO_PANOPTIC_FORMAT"):
        convert(root, folder=root / "file" / "converted")


def test_images_in_subfolders_are_found(tmp_path):
    root = files.write(tmp_path / "data")
    (root / "images" / "city").mkdir()
    (root / "images" / "2.jpg").rename(root / "images" / "city" / "2.jpg")
    folder = convert(root, image_root=root / "images")
    names = [image["file_name"] for image in read_instances(folder)["images"]]
    assert names == ["1.jpg", "city/2.jpg"]


def test_the_command(tmp_path, capsys):
    root = files.write(tmp_path / "data")
    arguments = ["--json", str(root / "panoptic.json"), "--png-dir", str(root / "panoptic")]
    assert convert_panoptic.main(arguments) == 0
    printed = capsys.readouterr().out
    assert str(root / "panoptic_converted") in printed
    assert "--force" not in printed
    assert convert_panoptic.main(arguments) == 0
    assert "nothing was converted. --force" in capsys.readouterr().out
    stuff = root / "panoptic_stuff"
    assert convert_panoptic.main([*arguments, "--output", str(stuff), "--stuff-only"]) == 0
    assert sorted(path.name for path in stuff.iterdir()) == ["1.png", "2.png"]
    assert np.array_equal(np.asarray(Image.open(stuff / "1.png")), files.STUFF_MAP)
    (root / "panoptic" / "1.png").unlink()
    assert convert_panoptic.main([*arguments, "--force"]) == 2
    assert "1.png is missing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        convert_panoptic.main([*arguments, "--stuff-only"])
