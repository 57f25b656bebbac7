"""Any config trains a step and infers, or is refused by a ConfigError that names the key.

Keys come from the config tree and words from its comments, so a new key is tried without being
listed here. `python -m pytest -m reliability tests/config/test_fuzz.py` draws thousands.
"""

import math
import re
import warnings
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.utils.events import EventStorage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solo_d2.config import defaults, load_config, override
from solo_d2.config.models import is_panoptic
from solo_d2.config.rules import leaves
from solo_d2.data import SOLODatasetMapper
from solo_d2.data.augmentation import build_train_augmentation
from solo_d2.engine import Trainer
from solo_d2.engine.checks import check_run_config
from solo_d2.engine.training_data import build_train_loader
from solo_d2.modeling.heads import SOLO_HEAD_REGISTRY
from solo_d2.modeling.speed import SpeedOptions, speed_up
from solo_d2.modeling.tta import SOLOWithTTA
from solo_d2.utils.errors import ConfigError
from tests.modeling.test_backbones import small
from tests.modeling.tiny import image, panoptic_config, tiny_config, with_sem_seg

SIZE = 64
DATASET = "config_fuzz"
HEADS = sorted(name for name, _ in SOLO_HEAD_REGISTRY)


def light(cfg):
    """The config with a ResNet of few channels, and all else as small as possible."""
    if "resnet" in cfg.MODEL.BACKBONE.NAME:
        resnets = cfg.MODEL.RESNETS
        resnets.DEPTH, resnets.STEM_OUT_CHANNELS = 50, 8
        resnets.RES2_OUT_CHANNELS, resnets.WIDTH_PER_GROUP = 16, 8
    cfg.MODEL.SOLO.SCORE_THRESH_TEST = cfg.MODEL.SOLO.KEEP_THRESH_TEST = 0.0
    cfg.MODEL.SOLO.PRE_NMS_TOPK, cfg.TEST.DETECTIONS_PER_IMAGE = 40, 20
    cfg.MODEL.SOLO.HEAD.PRIOR_PROB = 0.3
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (SIZE,), SIZE
    cfg.INPUT.LSJ.SIZE, cfg.TEST.AUG.MIN_SIZES = SIZE, (32, SIZE)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 2, 40, (20, 30)
    cfg.SOLVER.WARMUP_ITERS, cfg.DATALOADER.NUM_WORKERS = 10, 0
    cfg.DATASETS.TRAIN = (DATASET,)
    return cfg


MAKERS = {head: partial(tiny_config, head) for head in HEADS}
MAKERS |= {f"panoptic {head}": partial(panoptic_config, head) for head in HEADS}
MAKERS |= {kind: partial(small, kind) for kind in ("swin", "vit", "regnet")}
BASES = sorted(MAKERS)


@cache
def base_config(name):
    return light(MAKERS[name]())


SECTIONS = (
    *("MODEL.SOLO", "MODEL.SEM_SEG_HEAD", "MODEL.PANOPTIC_FPN", "MODEL.BACKBONE", "MODEL.FPN"),
    *("MODEL.RESNETS", "MODEL.SWIN", "MODEL.VIT", "MODEL.REGNET", "MODEL.PIXEL_"),
    *("MODEL.META_ARCHITECTURE", "INPUT", "SOLVER", "TEST", "DATALOADER", "SEED", "VIS_PERIOD"),
)
LEAVES = {
    key: value
    for key, value in leaves(base_config(f"panoptic {HEADS[-1]}"))
    if key.startswith(SECTIONS) and "KEYPOINT" not in key
}
WORDS = sorted(
    {
        *re.findall(r'"([\w-]*)"', Path(defaults.__file__).read_text()),
        *(value for value in LEAVES.values() if isinstance(value, str)),
        *("WarmupCosineLR", "RepeatFactorTrainingSampler", "relative", "res3", "p9", "s4"),
    }
)
LIKELY = {
    bool: [True, False],
    str: WORDS,
    int: [-1, 0, 1, 2, 3, 4, 8, 31, 32, 64],
    float: [-1.0, 0.0, 1e-30, 0.3, 1 - 1e-12, 1.0, 1.5, 100.0, math.nan, math.inf],
}
JUNK = [None, True, "", "a", -1, 3, 0.5, math.nan, b"a", [], [[1, 2]], ["a"], {"A": 1}]


@st.composite
def values(draw, value):
    """A value for a key with this one: likely, at a limit, or of a wrong type."""
    if not isinstance(value, (list, tuple)) or draw(st.integers(0, 4)) == 0:
        likely = st.sampled_from(LIKELY.get(type(value), JUNK))
        return draw(st.one_of(*[likely] * 3, st.sampled_from(JUNK)))
    result = list(value)
    place = draw(st.integers(0, max(0, len(result) - 1)))
    kept = draw(st.booleans())  # of what is at the place; what comes there may be nothing
    new = draw(st.lists(values(result[place] if result else 1), max_size=1))
    return [*result[: place + kept], *new, *result[place + 1 :]]


@st.composite
def changes(draw):
    """One to three keys with their new values."""
    keys = draw(st.lists(st.sampled_from(sorted(LEAVES)), min_size=1, max_size=3, unique=True))
    return {key: draw(values(LEAVES[key])) for key in keys}


CASES = {
    "base": st.sampled_from(BASES),
    "changed": changes(),
    "route": st.sampled_from(["attribute", "override", "text", "yaml"]),
}


@pytest.fixture(scope="module", autouse=True)
def dataset():
    """Four images of two orientations, whose pixels are never read."""
    annotation = {"bbox": [1, 1, 9, 9], "iscrowd": 0}
    records = [
        {"file_name": f"{i}.png", "image_id": i, "height": 48 + 16 * (i % 2), "width": 56,
         "annotations": [{**annotation, "category_id": i}]}
        for i in range(4)
    ]  # fmt: skip
    DatasetCatalog.register(DATASET, lambda: records)
    MetadataCatalog.get(DATASET).thing_classes = list("abcde")
    yield
    DatasetCatalog.pop(DATASET)
    MetadataCatalog.pop(DATASET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The configs to start from as files."""
    folder = tmp_path_factory.mktemp("configs")
    for name in BASES:
        (folder / f"{name}.yaml").write_text(base_config(name).dump())
    return folder


def changed_config(folder, base, changed, route):
    """The config with the changes, by Python code, a command line or a file."""
    cfg, content = base_config(base).clone(), {"_BASE_": f"{base}.yaml"}
    for key, value in changed.items():
        if route in ("override", "text"):
            override(cfg, [key, value if route == "override" else str(value)])
            continue
        *sections, name = key.split(".")
        node = cfg if route == "attribute" else content
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    if route != "yaml":
        return cfg
    (folder / "changed.yaml").write_text(yaml.safe_dump(content))
    return load_config(str(folder / "changed.yaml"))


def train(cfg, model):
    optimizer = Trainer.build_optimizer(cfg, model)
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    samples = [image(SIZE, SIZE), image(SIZE, SIZE, num=0)]
    for sample in samples:
        # What the data set's mapper makes sure of.
        sample["instances"].gt_classes %= cfg.MODEL.SOLO.NUM_CLASSES
        if is_panoptic(cfg):
            semantic = cfg.MODEL.SEM_SEG_HEAD
            sample |= with_sem_seg(sample, labels=semantic.NUM_CLASSES)
            sample["sem_seg"][sample["sem_seg"] == 255] = max(0, semantic.IGNORE_VALUE)
    with EventStorage():
        losses = model.train()(samples)
    assert all(loss.isfinite() and loss >= 0 for loss in losses.values()), losses
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    optimizer.step()
    for _ in range(min(3, cfg.SOLVER.MAX_ITER - 1)):
        scheduler.step()
        assert all(0 <= group["lr"] < math.inf for group in optimizer.param_groups)


def take_batch(cfg):
    given = T.AugInput(np.zeros((SIZE,) * 2 + (3,), np.uint8), sem_seg=np.zeros((SIZE,) * 2, "u1"))
    T.AugmentationList(build_train_augmentation(cfg))(given)
    assert given.sem_seg.shape == given.image.shape[:2]
    assert min(given.sem_seg.shape) >= 1
    loader = build_train_loader(cfg, SOLODatasetMapper(cfg, is_train=True))
    assert len(next(iter(loader.batch_sampler))) == cfg.SOLVER.IMS_PER_BATCH


@torch.no_grad()
def infer(cfg, model):
    options = SpeedOptions.from_config(cfg)
    models = [model, SOLOWithTTA(cfg, model) if cfg.TEST.AUG.ENABLED else model]
    models += [speed_up(model, options)] if not options.compile else []
    for used in models:
        result = used([{"image": image(SIZE, SIZE)["image"], "height": 50, "width": 70}])[0]
        found, solo = result["instances"], cfg.MODEL.SOLO
        assert len(found) <= cfg.TEST.DETECTIONS_PER_IMAGE
        assert found.pred_masks.shape == (len(found), 50, 70)
        assert found.pred_boxes.tensor.isfinite().all()
        assert ((found.scores >= solo.KEEP_THRESH_TEST) & (found.scores <= 1)).all()
        assert ((found.pred_classes >= 0) & (found.pred_classes < solo.NUM_CLASSES)).all()
        if "panoptic_seg" in result:
            ids, segments = result["panoptic_seg"]
            assert set(ids.unique().tolist()) - {0} == {segment["id"] for segment in segments}
            assert result["sem_seg"].isfinite().all()


def run(folder, base, changed, route):
    """Do all that a run makes of a config, for a step; return the refusal, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cfg = changed_config(folder, base, changed, route)
            check_run_config(cfg)
            cfg.SOLVER.COMPILE = ""  # which takes minutes
            torch.manual_seed(0)
            model = Trainer.build_model(cfg)
            train(cfg, model)
            take_batch(cfg)
            infer(cfg, model.eval())
    except ConfigError as error:
        text = str(error)
        assert "\n" not in text
        assert any(name in text for key in LEAVES for name in key.split(".")[-2:]), text
        return text


EXAMPLES = settings(
    database=None, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("base", BASES)
def test_unchanged_configs_run(folder, base):
    assert run(folder, base, {}, "yaml") is None


@settings(EXAMPLES, max_examples=30, derandomize=True)
@given(**CASES)
def test_runs_or_is_refused(folder, base, changed, route):
    run(folder, base, changed, route)


@pytest.mark.reliability
@settings(EXAMPLES, max_examples=1000)
@given(**CASES)
def test_thousands_run_or_are_refused(folder, base, changed, route):
    run(folder, base, changed, route)


LSJ, VIEWS = {"INPUT.LSJ.ENABLED": True}, {"TEST.AUG.ENABLED": True}
# What was found like this and mended; None runs.
FOUND = [
    # Layers without channels were built, and failed in the first step.
    ("SOLOv2Head", {"MODEL.RESNETS.WIDTH_PER_GROUP": 0}, "MODEL.RESNETS.WIDTH_PER_GROUP"),
    # Groups of one channel on a map of one pixel.
    ("panoptic SOLOHead", VIEWS, None),
    # Detectron2 mirrors a view of one pixel to an array that torch does not take.
    ("regnet", {**VIEWS, "TEST.AUG.MIN_SIZES": (1, 2)}, "TEST.AUG.MIN_SIZES"),
    # A key of the semantic branch, read by the augmentation of other models.
    ("SOLOv2Head", {**LSJ, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": None}, "SEM_SEG_HEAD.IGNORE_VALUE"),
    # Detectron2's refusal, an assertion without a word.
    ("regnet", {"MODEL.REGNET.W_A": 1e30}, "MODEL.REGNET"),
]


@pytest.mark.parametrize(("base", "changed", "named"), FOUND)
@pytest.mark.parametrize("route", ["attribute", "override"])
def test_found_by_fuzzing(folder, base, changed, named, route):
    text = run(folder, base, changed, route)
    assert text is None if named is None else named in text
