"""What the evaluation would fail on is refused before the first iteration."""

import contextlib
import json
import logging

import numpy as np
import pytest
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import (
    register_coco_instances,
    register_coco_panoptic_separated,
)
from detectron2.utils import comm
from PIL import Image

from solo_d2.data import register_coco_format, register_panoptic_format
from solo_d2.data.panoptic_conversion import ensure_converted
from solo_d2.engine import setup
from solo_d2.engine.lazy import check_lazy_test_data
from solo_d2.evaluation.check import check_test_data
from solo_d2.utils.errors import ConfigError, DatasetError
from tests import panoptic_files
from tests.engine.runs import run_config
from tests.evaluation.made_up import images_of, rectangle
from tests.json_damage import changed, gone, put
from tests.modeling.tiny import panoptic_config, tiny_config
from tools.dataset_check.command import check

NAMES = ("check_val", "check_val_separated", "check_val_stuffonly")
HEIGHT, WIDTH = 40, 60


def content():
    return {
        "images": images_of((HEIGHT, WIDTH), 1, 2),
        "annotations": [rectangle(key, (4, 4, 20, 20), key, 3) for key in (1, 2)],
        "categories": [{"id": 3, "name": "cat"}],
    }


@pytest.fixture
def data(tmp_path):
    """Write a data set, with changes of the json and a damage to the images to evaluate on."""

    def make(*changes, damage=None):
        root = tmp_path / "data"
        (root / "annotations").mkdir(parents=True)
        for part in ("train", "val"):
            (root / part).mkdir()
            for key in (1, 2):
                Image.new("RGB", (WIDTH, HEIGHT)).save(root / part / f"{key}.jpg")
            written = changed(content(), changes if part == "val" else ())
            (root / f"annotations/instances_{part}.json").write_text(json.dumps(written))
        if damage is not None:
            damage(root / "val")
        return root

    return make


def register(root, name=NAMES[0], by=register_coco_format):
    """Register the part to evaluate on, by our function or by Detectron2's."""
    paths = f"{root}/annotations/instances_val.json", f"{root}/val"
    by(name, *(() if by is register_coco_format else ({},)), *paths)


SECOND = ("annotations", 1, "segmentation")
RLE_FAULTS = {
    "RLE of another size": [put(*SECOND, value={"size": [9, 9], "counts": [40, 41]})],
    "damaged RLE": [put(*SECOND, value={"size": [HEIGHT, WIDTH], "counts": "0 0"})],
    "no segmentation": [gone(*SECOND)],
}
# What training and its evaluation cannot use, and what Detectron2's loader would let pass.
FAULTS = {
    **RLE_FAULTS,
    "text for a category": [put("annotations", 0, "category_id", value="cat")],
    "polygon of texts": [put(*SECOND, value=[["a"] * 6])],
}
BUILT_IN = {
    **RLE_FAULTS,
    "unknown category": [put("annotations", 0, "category_id", value=4)],
    "crowd of two": [put("annotations", 0, "iscrowd", value=2)],
}
# What is filled in or left out, as in training.
MENDED = {
    "no area": [gone("annotations", 0, "area")],
    "box of three numbers": [put("annotations", 0, "bbox", value=[1, 2, 3])],
    "two points": [put(*SECOND, value=[[1.0, 1.0, 5.0]])],
}


NO_IMAGES = [put("images", value=[]), put("annotations", value=[])]


def missing_image(folder):
    (folder / "2.jpg").unlink()


@pytest.mark.parametrize("name", [*FAULTS, "missing image"])
def test_val_fault_is_refused_before_anything_is_written(data, tmp_path, name):
    root = data(*FAULTS.get(name, ()), damage=None if name in FAULTS else missing_image)
    args = run_config(root, tmp_path / "config", "OUTPUT_DIR", tmp_path / "out")
    for args.eval_only, period in ((False, 0), (False, 4), (True, 0)):
        args.opts += ["TEST.EVAL_PERIOD", str(period)]
        with pytest.raises(DatasetError, match="instances_val.json"):
            setup(args)
    assert not (tmp_path / "out").exists()


def test_own_data_without_annotations_are_for_predictions_alone(data, tmp_path):
    args = run_config(data(gone("annotations")), tmp_path / "out")
    with pytest.raises(DatasetError, match=r"instances_val.json .*'annotations'"):
        setup(args)
    args.eval_only = True
    setup(args)


@pytest.mark.parametrize("by", [register_coco_format, register_coco_instances])
def test_data_without_images_are_refused(data, by):
    register(data(*NO_IMAGES), by=by)
    with pytest.raises(DatasetError, match=r"check_val.*instances_val.json.*no images"):
        check_test_data(tiny_config(), [NAMES[0]])


def test_data_without_objects_get_a_warning(data, caplog):
    register(data(*(put("annotations", index, "segmentation", value=[]) for index in (0, 1))))
    check_test_data(tiny_config(), [NAMES[0]])
    assert "no objects" in caplog.text


def test_the_check_of_data_sets_says_the_same(data, tmp_path, capsys):
    root = data(damage=missing_image)
    register(root, by=register_coco_instances)
    file = tmp_path / "config.yaml"
    cfg = tiny_config()
    cfg.MODEL.SOLO.NUM_CLASSES = 0
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), (NAMES[0],)
    file.write_text(cfg.dump())
    args = run_config(root, tmp_path / "unused")
    args.config_file, args.dataset, args.json_only, args.output = str(file), [], True, None
    args.train_json = args.train_images = args.val_json = args.val_images = None
    args.objects, args.workers = 0, 0
    assert check(args)
    assert "2.jpg" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*BUILT_IN, "missing image"])
def test_val_fault_of_a_data_set_that_detectron2_loads(data, name):
    root = data(*BUILT_IN.get(name, ()), damage=None if name in BUILT_IN else missing_image)
    register(root, by=register_coco_instances)
    with pytest.raises(DatasetError, match="annotation|2.jpg"):
        check_test_data(tiny_config(), [NAMES[0]])


@pytest.mark.parametrize("name", [None, *MENDED])
def test_right_data_passes_and_leaves_no_file(data, tmp_path, monkeypatch, name):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    root = data(*MENDED.get(name, ()))
    register(root, by=register_coco_instances)
    register(root, NAMES[1])
    before = sorted(root.rglob("*"))
    check_test_data(tiny_config(), NAMES[:2])
    assert sorted(root.rglob("*")) == before


def test_unreadable_images_are_listed_in_one_warning_unless_all_are(data, caplog):
    def damage(folder):
        Image.new("RGB", (HEIGHT, WIDTH)).save(folder / "2.jpg")

    root = data(damage=damage)
    register(root)
    check_test_data(tiny_config(), [NAMES[0]])
    (message,) = {r.getMessage() for r in caplog.records if r.levelno == logging.WARNING}
    assert "1 of the 2 images" in message
    assert "2.jpg has 60 x 40 pixels" in message
    (root / "val/1.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"None of the 2 images .*1\.jpg: not an image"):
        check_test_data(tiny_config(), [NAMES[0]])


def test_images_without_an_id_are_refused(data):
    root = data()
    DatasetCatalog.register(NAMES[0], lambda: [{"file_name": f"{root}/val/1.jpg"}])
    MetadataCatalog.get(NAMES[0]).set(thing_classes=["cat"], evaluator_type="coco")
    with pytest.raises(DatasetError, match="1 of 1 images have no 'image_id'"):
        check_test_data(tiny_config(), [NAMES[0]])


def turned(folder):
    """An image that is 40 x 60 once it is upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(folder / "1.jpg", exif=exif)


def test_the_orientation_of_exif_counts(data, caplog):
    register(data(damage=turned))
    check_test_data(tiny_config(), [NAMES[0]])
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def test_other_processes_end_with_the_error_of_the_main_one(monkeypatch):
    error = DatasetError("val.json: annotation 4")
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    monkeypatch.setattr(comm, "all_gather", lambda mine: [error, mine])
    with pytest.raises(DatasetError, match="annotation 4"):
        check_test_data(tiny_config(), ["never_loaded"])


def test_lazy_configs_are_checked_too(data):
    register(data(*FAULTS["RLE of another size"]))
    lazy = LazyConfig.load("configs/lazy/solov2_R50_1x.py")
    lazy.dataloader.test.dataset.names = NAMES[0]
    with pytest.raises(DatasetError, match="annotation 2"):
        check_lazy_test_data(lazy)
    del lazy.dataloader.evaluator
    with pytest.raises(ConfigError, match=r"dataloader\.evaluator"):
        check_lazy_test_data(lazy)


UNKNOWN = np.array(panoptic_files.IDS)
UNKNOWN[0, 0] = 77
# Images in place of a PNG; None: no file.
PNGS = {
    "unknown segment": panoptic_files.id_pixels(UNKNOWN),
    "absent segment": panoptic_files.id_pixels(np.full((4, 6), panoptic_files.SKY)),
    "other size": panoptic_files.id_pixels(np.full((5, 6), 8)),
    "palette": np.zeros((4, 6), np.uint8),
    "no PNG": None,
}
STUFF = {
    "stuff label": np.full((4, 6), 9, np.uint8),
    "stuff size": np.zeros((5, 6), np.uint8),
}


def damage_pngs(root, fault):
    folder = "panoptic_converted/stuff" if fault in STUFF else "panoptic"
    file, pixels = root / folder / "1.png", {**PNGS, **STUFF}[fault]
    file.unlink()
    if pixels is not None:
        image = Image.fromarray(pixels)
        (image.convert("P") if fault == "palette" else image).save(file)


def stuff_config():
    cfg = panoptic_config()
    cfg.MODEL.SOLO.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2, 3
    return cfg


@pytest.mark.parametrize("when", ["before the conversion", "after it"])
@pytest.mark.parametrize("fault", PNGS)
def test_panoptic_png_fault_is_refused(tmp_path, fault, when):
    root = panoptic_files.write(tmp_path / "data")
    paths = root / "panoptic.json", root / "panoptic"
    if when == "after it":
        ensure_converted(*paths)
    damage_pngs(root, fault)
    register_panoptic_format(NAMES[0], *paths, root / "images")
    with pytest.raises(DatasetError, match=r"1\.png"):
        check_test_data(stuff_config(), [NAMES[0]])


@pytest.mark.parametrize("fault", [*PNGS, *STUFF, "no entry", None])
def test_png_fault_of_a_panoptic_data_set_that_detectron2_loads(tmp_path, fault):
    root = panoptic_files.write(tmp_path / "data")
    folder = ensure_converted(root / "panoptic.json", root / "panoptic")
    if fault == "no entry":
        written = json.loads((root / "panoptic.json").read_text())
        written["annotations"].pop()
        (root / "panoptic.json").write_text(json.dumps(written))
    elif fault is not None:
        damage_pngs(root, fault)
    metadata = {
        "thing_classes": ["cat", "dog"],
        "stuff_classes": ["things", "grass", "sky"],
        "thing_dataset_id_to_contiguous_id": {3: 0, 5: 1},
        "stuff_dataset_id_to_contiguous_id": {0: 0, 9: 1, 21: 2},
    }
    paths = [root / name for name in ("images", "panoptic", "panoptic.json")]
    paths += [folder / "stuff", folder / "instances.json"]
    register_coco_panoptic_separated("check_val", metadata, *map(str, paths))
    with contextlib.nullcontext() if fault is None else pytest.raises(DatasetError):
        check_test_data(stuff_config(), ["check_val_separated"])
