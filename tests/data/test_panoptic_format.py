"""Data sets in COCO's panoptic format: registration, records, class counts, checks."""

import os
import time

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as coco_mask

from solo_d2.config import default_config
from solo_d2.data import (
    ShapesParams,
    check_datasets,
    ensure_shapes,
    register_datasets_of_config,
    register_panoptic_format,
    register_shapes,
    resolve_num_classes,
)
from solo_d2.data.entries import read_entries
from solo_d2.data.panoptic_json import WITHOUT_ENTRY, read_segment_ids
from solo_d2.data.problems import ERROR, SKIPPED
from solo_d2.data.shapes import drawing
from solo_d2.engine import argument_parser, setup
from solo_d2.utils.errors import ConfigError, DatasetError
from tests import panoptic_files as files
from tests.modeling.tiny import panoptic_config
from tools.dataset_check.command import check

pytestmark = pytest.mark.detectron2


def paths(root):
    return [str(root / name) for name in ("panoptic.json", "panoptic", "images")]


def config(train=(), test=(), entries=(), architecture="PanopticSOLO", number=0):
    cfg = default_config()
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = number
    cfg.DATASETS.COCO_PANOPTIC_FORMAT = list(entries)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), tuple(test)
    return cfg


def test_a_folder_named_by_the_config(tmp_path):
    root = files.write(tmp_path / "data")
    folder = tmp_path / "else" / "where"
    cfg = config(["test_mine"], entries=[["test_mine", *paths(root), str(folder)]])
    cfg.freeze()
    register_datasets_of_config(cfg)
    check_datasets(["test_mine"])
    assert resolve_num_classes(cfg) == 2
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3
    assert cfg.is_frozen()
    assert not folder.exists()  # so far only the json was read
    first, second = DatasetCatalog.get("test_mine")
    assert first["file_name"] == str(root / "images" / "1.jpg")
    assert first["pan_seg_file_name"] == str(root / "panoptic" / "1.png")
    assert np.array_equal(np.asarray(Image.open(first["sem_seg_file_name"])), files.STUFF_MAP)
    assert [(a["category_id"], a["iscrowd"]) for a in first["annotations"]] == [(0, 0), (1, 1)]
    assert [(s["id"], s["isthing"], s["category_id"]) for s in first["segments_info"]] == [
        (files.SKY, False, 2),
        (files.CAT, True, 0),
        (files.CROWD, True, 1),
    ]
    assert second["annotations"] == []
    assert (folder / "instances.json").is_file()
    metadata = MetadataCatalog.get("test_mine")
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert metadata.stuff_classes == ["things", "grass", "sky"]


def test_images_without_an_entry_are_counted(tmp_path, caplog):
    root = files.write(tmp_path / "data", lambda content: content["annotations"].pop(1))
    register_panoptic_format("test_mine", *paths(root))
    assert len(DatasetCatalog.get("test_mine")) == 1
    (warning,) = [text for text in caplog.messages if "no entry" in text]
    assert "1 of 2 images (50.0%)" in warning
    assert "2.jpg" in warning
    problems = []
    assert len(read_entries("test_mine", problems.append)[0]) == 1
    (problem,) = [problem for problem in problems if problem.kind == WITHOUT_ENTRY]
    assert problem.severity == SKIPPED


def test_text_ids_and_folders_of_cities_as_in_cityscapes(tmp_path):
    def texts(content):
        for entry in (*content["images"], *content["annotations"]):
            key = "id" if "id" in entry else "image_id"
            entry[key] = f"aachen_{entry[key]}"

    root = files.write(tmp_path / "data", texts)
    (root / "images" / "aachen").mkdir()
    for name in ("1.jpg", "2.jpg"):
        (root / "images" / name).rename(root / "images" / "aachen" / name)
    register_panoptic_format("test_city", *paths(root))
    records = DatasetCatalog.get("test_city")
    assert [record["image_id"] for record in records] == ["aachen_1", "aachen_2"]
    assert records[1]["file_name"] == str(root / "images" / "aachen" / "2.jpg")


def test_images_that_were_moved_after_the_conversion(tmp_path):
    root = files.write(tmp_path / "data")
    register_panoptic_format("test_mine", *paths(root))
    DatasetCatalog.get("test_mine")
    (root / "images" / "city").mkdir()
    for name in ("1.jpg", "2.jpg"):
        (root / "images" / name).rename(root / "images" / "city" / name)
    with pytest.raises(DatasetError, match=r"1\.jpg is missing .* convert again: python tools/"):
        DatasetCatalog.get("test_mine")


def test_pngs_that_are_newer_than_the_conversion(tmp_path, caplog):
    root = files.write(tmp_path / "data")
    register_panoptic_format("test_mine", *paths(root))
    DatasetCatalog.get("test_mine")
    assert not [text for text in caplog.messages if "newer" in text]
    later = time.time() + 100
    os.utime(root / "panoptic" / "2.png", (later, later))
    DatasetCatalog.get("test_mine")
    (warning,) = [text for text in caplog.messages if "newer" in text]
    assert "1 of 2 panoptic PNGs" in warning
    assert "2.png" in warning
    assert "--force" in warning


def test_a_name_that_is_taken(tmp_path):
    root = files.write(tmp_path / "data")
    for _ in range(2):
        register_panoptic_format("test_mine", *paths(root))
    with pytest.raises(ConfigError, match="'test_mine' is taken: its panoptic_root is"):
        register_panoptic_format("test_mine", paths(root)[0], tmp_path, paths(root)[2])
    with pytest.raises(ConfigError, match="'coco_2017_val' is taken"):
        register_panoptic_format("coco_2017_val", *paths(root))


MISSING = {
    "panoptic.json": "panoptic annotation file",
    "panoptic": "folder of panoptic PNGs",
    "images": "image folder",
}


@pytest.mark.parametrize("gone", MISSING)
def test_missing_files_are_named(tmp_path, gone):
    root = files.write(tmp_path / "data")
    register_panoptic_format("test_mine", *paths(root))
    (root / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=f"{MISSING[gone]} of data set 'test_mine' .*{root}/"):
        check_datasets(["test_mine"])


def test_a_check_lists_all_that_is_wrong(tmp_path):
    def change(content):
        first, second = content["annotations"]
        first["segments_info"][1].update(category_id=4)
        first["segments_info"][2].update(id=0)
        second["file_name"] = "gone.png"
        for key, height in ((3, 0), (5, 4)):
            content["images"].append({**content["images"][0], "id": key, "height": height})
        for key, png in ((9, "9.png"), (5, "1.png")):
            content["annotations"].append({"image_id": key, "file_name": png, "segments_info": []})

    root = files.write(tmp_path / "data", change)
    register_panoptic_format("test_mine", *paths(root))
    problems = []
    assert read_entries("test_mine", problems.append)[0] == []
    assert [(problem.kind, problem.where) for problem in problems] == [
        ("image with an invalid 'height'", "image 3"),
        ("segment with an invalid 'id'", "image 1: 'segments_info', entry 2 (from 0)"),
        ("unknown category", "image 1: segment 70000"),
        ("annotation of an unknown image", "image 9"),
        ("panoptic PNG cannot be used", "image 2"),
        ("panoptic PNG cannot be used", "image 5"),
    ]
    assert "gone.png is missing" in problems[-2].reason
    assert "ids that the JSON does not list: 4, 300, 70000" in problems[-1].reason
    assert {problem.severity for problem in problems} == {ERROR}


# --- class counts


@pytest.mark.parametrize(
    ("train", "test", "given", "expected"),
    [
        ("coco_2017_val_panoptic_separated", None, 0, 54),
        ("coco_2017_val_panoptic_separated", None, 54, 54),
        ("shapes_val_panoptic", None, 0, 5),
        # Training needs stuff, evaluation does not.
        ("shapes_train_panoptic", "shapes_val", 0, 5),
        (None, "shapes_val", 5, 5),
        ("shapes_train", None, 0, "'shapes_train' of DATASETS.TRAIN has no stuff"),
        (None, None, 3, 3),
        (None, "shapes_val", 0, r"No data set .* set MODEL\.SEM_SEG_HEAD\.NUM_CLASSES"),
        ("shapes_train_panoptic", None, 54, r"SEM_SEG_HEAD\.NUM_CLASSES is 54, .* has 5"),
    ],
)
def test_numbers_of_stuff_classes(train, test, given, expected):
    cfg = config([train] if train else [], [test] if test else [], number=given)
    cfg.MODEL.SOLO.NUM_CLASSES = 0 if train or test else 2
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            resolve_num_classes(cfg)
    else:
        resolve_num_classes(cfg)
        assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == expected


def test_a_model_of_instances_alone_keeps_its_number():
    cfg = config(["shapes_train_panoptic"], architecture="SOLO", number=54)
    assert resolve_num_classes(cfg) == 7
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 54


@pytest.mark.parametrize(("kind", "reason"), [(1, "no stuff category"), (0, "no category has 'is")])
def test_data_of_things_or_stuff_alone(tmp_path, kind, reason):
    """The reason is the data's, not a key that nobody has set."""
    root = files.write(
        tmp_path / "data", lambda content: [c.update(isthing=kind) for c in content["categories"]]
    )
    register_panoptic_format("test_mine", *paths(root))
    with pytest.raises(DatasetError, match=f"panoptic.json.* {reason}") as error:
        resolve_num_classes(config(["test_mine"], ["test_mine"]))
    assert "NUM_CLASSES" not in str(error.value)


def test_the_check_gives_the_reason_of_the_training(tmp_path, capsys):
    given = []
    for split, change in (("train", None), ("val", lambda content: content["categories"].pop())):
        root = files.write(tmp_path / split, change)
        for kind, path in zip(
            ("panoptic-json", "panoptic-dir", "images"), paths(root), strict=True
        ):
            given += [f"--{split}-{kind}", path]
    file = tmp_path / "tiny.yaml"
    cfg = panoptic_config()
    cfg.MODEL.SOLO.NUM_CLASSES = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 0
    file.write_text(cfg.dump())
    args = argument_parser().parse_args(["--config-file", str(file), *given])
    args.dataset, args.output = [], None
    args.json_only, args.objects, args.workers = False, 9, 0
    with pytest.raises(ConfigError) as error:
        setup(args)
    assert check(args)  # training would fail
    printed = capsys.readouterr().out
    assert str(error.value) in printed
    assert "has the label" not in printed  # the stuff maps are read, too, and are right


def test_different_stuff_classes_name_what_is_missing(tmp_path):
    for name, sky in (("test_one", "sky"), ("test_two", "cloud")):
        root = files.write(tmp_path / name, lambda c, sky=sky: c["categories"][0].update(name=sky))
        register_panoptic_format(name, *paths(root))
    with pytest.raises(ConfigError, match=r"'test_one' has 'sky' .* 'test_two' has 'cloud' \(st"):
        resolve_num_classes(config(["test_one"], ["test_two"]))


# --- built-in data sets


@pytest.mark.parametrize("name", ["coco_2017_train_panoptic", "cityscapes_fine_panoptic_val"])
@pytest.mark.parametrize(
    "call", [lambda n: check_datasets([n]), lambda n: resolve_num_classes(config([n]))]
)
def test_standard_panoptic_data_sets_name_the_separated_one(name, call):
    with pytest.raises(DatasetError, match=f"standard panoptic .* name '{name}_separated'"):
        call(name)


def test_missing_files_name_the_script_that_makes_them(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DatasetError, match=r"createPanopticImgs\.py"):
        check_datasets(["cityscapes_fine_panoptic_train_separated"])
    metadata = MetadataCatalog.get("coco_2017_val_panoptic_separated").as_dict()
    keys = ("panoptic_json", "panoptic_root", "json_file", "image_root")
    DatasetCatalog.register("test_panoptic", list)
    MetadataCatalog.get("test_panoptic").set(
        **{**metadata, **dict.fromkeys(keys, str(tmp_path)), "name": "test_panoptic"}
    )
    with pytest.raises(DatasetError, match=r"semantic PNGs .*convert_panoptic\.py --stuff-only"):
        check_datasets(["test_panoptic"])


# --- generated data


def test_panoptic_shapes_agree_with_instances_and_stuff(tmp_path):
    register_shapes(ensure_shapes(tmp_path / "shapes", ShapesParams(3, 0, 5)))
    plain = DatasetCatalog.get("shapes_train")
    records = DatasetCatalog.get("shapes_train_panoptic")
    assert len(records) == len(plain) == 3
    metadata = MetadataCatalog.get("shapes_train_panoptic")
    assert metadata.stuff_classes == ["things", *drawing.STUFF_CLASSES]
    for index, record in enumerate(records):
        drawn = drawing.draw_image(5, "train", index)
        assert record["annotations"] == plain[index]["annotations"]
        stuff = np.asarray(Image.open(record["sem_seg_file_name"]))
        expected = np.where(drawn.masks.any(axis=0), 0, drawn.stuff + 1)
        assert np.array_equal(stuff, expected)
        ids = read_segment_ids(record["pan_seg_file_name"])
        things = [s for s in record["segments_info"] if s["isthing"]]
        assert [s["category_id"] for s in things] == drawn.classes.tolist()
        for segment, annotation in zip(things, record["annotations"], strict=True):
            mask = coco_mask.decode(annotation["segmentation"])
            assert np.array_equal(ids == segment["id"], mask)
        for segment in record["segments_info"]:
            assert segment["area"] == (ids == segment["id"]).sum() > 0
            if not segment["isthing"]:
                assert np.array_equal(ids == segment["id"], stuff == segment["category_id"])
        assert {s["id"] for s in record["segments_info"]} == set(np.unique(ids))
