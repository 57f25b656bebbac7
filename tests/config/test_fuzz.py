"""Any config: a model that trains and infers, or a ConfigError that names the key; nothing else.

The keys come from the config itself and the words from its comments, so a new key is tried without
being named here. `python -m pytest -m reliability tests/config/test_fuzz.py` tries thousands.
"""

import math
import re
import warnings
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402
from detectron2.data import transforms as T  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import solo_d2.config  # noqa: E402
from solo_d2.config import load_config, override  # noqa: E402
from solo_d2.config.rules import leaves  # noqa: E402
from solo_d2.data import SOLODatasetMapper  # noqa: E402
from solo_d2.data.augmentation import build_train_augmentation  # noqa: E402
from solo_d2.data.stuff_classes import is_panoptic  # noqa: E402
from solo_d2.engine import Trainer  # noqa: E402
from solo_d2.engine.checks import check_run_config  # noqa: E402
from solo_d2.engine.training_data import build_train_loader  # noqa: E402
from solo_d2.modeling.checks import NORMS  # noqa: E402
from solo_d2.modeling.heads import SOLO_HEAD_REGISTRY  # noqa: E402
from solo_d2.modeling.speed import SpeedOptions, speed_up  # noqa: E402
from solo_d2.modeling.tta import SOLOWithTTA  # noqa: E402
from solo_d2.utils.errors import ConfigError  # noqa: E402
from tests.modeling.test_backbones import small  # noqa: E402
from tests.modeling.tiny import (  # noqa: E402
    image,
    panoptic_config,
    tiny_config,
    with_sem_seg,
)
from tools.benchmarks.common import peak_memory  # noqa: E402

GIB = 2**30
SIZE = 64
DATASET = "config_fuzz"
HEADS = sorted(name for name, _ in SOLO_HEAD_REGISTRY)


def light(cfg):
    """The config with a ResNet of few channels, and all else as small as it may be."""
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


def bases():
    """Configs to start from, by name: every head, panoptic or not, and every backbone."""
    made = {head: light(tiny_config(head)) for head in HEADS}
    made |= {f"panoptic {head}": light(panoptic_config(head)) for head in HEADS}
    return made | {kind: light(small(kind)) for kind in ("swin", "vit", "regnet")}


BASES = bases()
SECTIONS = ("MODEL.SOLO", "MODEL.SEM_SEG_HEAD", "MODEL.PANOPTIC_FPN", "MODEL.BACKBONE")
SECTIONS += ("MODEL.FPN", "MODEL.RESNETS", "MODEL.SWIN", "MODEL.VIT", "MODEL.REGNET")
SECTIONS += ("MODEL.PIXEL_", "INPUT", "SOLVER", "TEST", "DATALOADER", "SEED", "VIS_PERIOD")
SECTIONS += ("MODEL.META_ARCHITECTURE", "FLOAT32_PRECISION", "CUDNN_BENCHMARK")
# Values by key, of the config that has most of them.
LEAVES = {
    key: value
    for key, value in leaves(BASES[f"panoptic {HEADS[-1]}"])
    if key.startswith(SECTIONS) and "KEYPOINT" not in key
}
WORDS = {
    *re.findall(r'"([\w-]*)"', Path(solo_d2.config.__file__).read_text()),
    *(value for value in LEAVES.values() if isinstance(value, str)),
    *NORMS,
    *("WarmupCosineLR", "WarmupStepWithFixedGammaLR", "RepeatFactorTrainingSampler", "constant"),
    *("absolute", "absolute_range", "relative", "vertical", "avg", "res3", "p9", "s4", "highest"),
}
NAN, INF = float("nan"), float("inf")
WHOLE = [-1, 0, 1, 2, 3, 4, 8, 16, 31, 32, 48, 64, 100, 255, 1000, 10**6, 10**9, 2**31, 2**63]
REAL = [
    -1.0,
    -1e-9,
    0.0,
    1e-30,
    1e-3,
    0.3,
    0.5,
    1 - 1e-12,
    1.0,
    1.5,
    10.0,
    1e6,
    1e30,
    1e39,
    NAN,
    INF,
]
JUNK = [None, True, "", "a", "nan", "1", -1, 0, 3, 0.5, 10**30, 10**5000, NAN, -INF, 1e308, b"a"]
JUNK += [
    [],
    [[]],
    [None],
    [[1, 2]],
    ["a"],
    [0],
    [0.5, "a"],
    (1, 2, 3),
    {},
    {"A": 1},
    [NAN],
    [10**30],
]


def elements(value):
    """Values for an element of a list, or for a key that is none, by what is there."""
    likely = [True, False] if isinstance(value, bool) else []
    if isinstance(value, str):
        likely = sorted(WORDS)
    elif isinstance(value, float):
        likely = [*REAL, 2 * value, value / 2, 1 - value]
    elif isinstance(value, int) and not likely:
        likely = [*WHOLE, value - 1, value + 1, 2 * value, value // 2]
    junk = st.sampled_from(JUNK)
    return st.one_of(*[st.sampled_from(likely)] * 3, junk) if likely else junk


@st.composite
def values(draw, value):
    """A value for a key that has this one: likely, at a limit, or of a wrong type."""
    if not isinstance(value, (list, tuple)) or draw(st.integers(0, 4)) == 0:
        return draw(elements(value))
    result = list(value)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, max(0, len(result) - 1)))
        step = draw(st.sampled_from(["change", "add", "drop", "reverse"]))
        if step == "add" or not result:
            like = result[place] if result else 1
            result.insert(place, draw(st.just(like) | values(like)))
        elif step == "drop":
            del result[place]
        elif step == "reverse":
            result.reverse()
        else:
            result[place] = draw(values(result[place]))
    return result


@st.composite
def changes(draw):
    """One to three keys with their new values."""
    keys = draw(st.lists(st.sampled_from(sorted(LEAVES)), min_size=1, max_size=3, unique=True))
    return {key: draw(values(LEAVES[key])) for key in keys}


CASES = {
    "base": st.sampled_from(sorted(BASES)),
    "changed": changes(),
    "route": st.sampled_from(["attribute", "override", "text", "yaml"]),
}


@pytest.fixture(scope="module", autouse=True)
def dataset():
    """Four images of two orientations, of which nobody reads the pixels."""
    records = [
        {
            "file_name": f"{index}.png",
            "image_id": index,
            "height": 48 + 16 * (index % 2),
            "width": 56,
            "annotations": [{"bbox": [1, 1, 9, 9], "category_id": index, "iscrowd": 0}],
        }
        for index in range(4)
    ]
    DatasetCatalog.register(DATASET, lambda: records)
    MetadataCatalog.get(DATASET).thing_classes = list("abcde")
    yield
    DatasetCatalog.pop(DATASET)
    MetadataCatalog.pop(DATASET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The configs to start from as files."""
    folder = tmp_path_factory.mktemp("configs")
    for name, cfg in BASES.items():
        (folder / f"{name}.yaml").write_text(cfg.dump())
    return folder


def as_text(value):
    try:
        return str(value)
    except ValueError:  # there are whole numbers with more digits than Python writes
        return None


def changed_config(folder, base, changed, route):
    """The config with the changes, by Python code, a command line or a file."""
    if route == "yaml":
        content = {"_BASE_": f"{base}.yaml"}
        for key, value in changed.items():
            *sections, name = key.split(".")
            node = content
            for section in sections:
                node = node.setdefault(section, {})
            node[name] = value
        try:
            (folder / "changed.yaml").write_text(yaml.safe_dump(content))
            return load_config(str(folder / "changed.yaml"))
        except ConfigError:
            raise
        except ValueError:  # no YAML has whole numbers of thousands of digits
            route = "attribute"
    cfg = BASES[base].clone()
    for key, value in changed.items():
        if route == "override":
            override(cfg, [key, value])
        elif route == "text" and (text := as_text(value)) is not None:
            override(cfg, [key, text])
        else:
            *sections, name = key.split(".")
            node = cfg
            for section in sections:
                node = node[section]
            node[name] = value
    return cfg


def use(cfg):
    """All that a run makes of a config, for a step."""
    check_run_config(cfg)
    cfg.SOLVER.COMPILE = ""  # which takes minutes
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    train(cfg, model)
    take_batches(cfg)
    infer(cfg, model.eval())


def train(cfg, model):
    optimizer = Trainer.build_optimizer(cfg, model)
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    samples = [image(SIZE, SIZE), image(SIZE, SIZE, num=0)]
    labels = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES if is_panoptic(cfg) else 0
    for sample in samples:
        # What the data set's mapper makes sure of.
        sample["instances"].gt_classes %= cfg.MODEL.SOLO.NUM_CLASSES
        if labels:
            sample |= with_sem_seg(sample, labels=labels)
            unlabelled = sample["sem_seg"] == 255
            sample["sem_seg"][unlabelled] = max(0, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    with EventStorage():
        losses = model.train()(samples)
    assert all(loss.isfinite() and loss >= 0 for loss in losses.values()), losses
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    optimizer.step()
    for _ in range(min(3, cfg.SOLVER.MAX_ITER - 1)):
        scheduler.step()
        rates = [group["lr"] for group in optimizer.param_groups]
        assert all(math.isfinite(rate) and rate >= 0 for rate in rates), rates


def take_batches(cfg):
    small_enough = max(*cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.LSJ.SIZE) <= 1024
    augmentations = T.AugmentationList(build_train_augmentation(cfg))
    if small_enough:
        given = T.AugInput(
            np.zeros((SIZE, SIZE, 3), np.uint8), sem_seg=np.zeros((SIZE, SIZE), np.uint8)
        )
        augmentations(given)
        assert min(given.image.shape[:2]) >= 1
        assert given.sem_seg.shape == given.image.shape[:2]
    loader = build_train_loader(cfg, SOLODatasetMapper(cfg, is_train=True))
    batch = next(iter(loader.batch_sampler))
    assert len(batch) == cfg.SOLVER.IMS_PER_BATCH


@torch.no_grad()
def infer(cfg, model):
    sample = {"image": image(SIZE, SIZE)["image"], "height": 50, "width": 70}
    check_results(cfg, model([sample])[0])
    views = cfg.TEST.AUG
    if views.ENABLED and max(views.MIN_SIZES, default=0) <= 2 * SIZE:
        check_results(cfg, SOLOWithTTA(cfg, model)([sample])[0])
    options = SpeedOptions.from_config(cfg)
    if options != SpeedOptions() and not options.compile:
        check_results(cfg, speed_up(model, options)([sample])[0])


def check_results(cfg, result):
    found = result["instances"]
    assert len(found) <= cfg.TEST.DETECTIONS_PER_IMAGE
    assert found.pred_masks.shape == (len(found), 50, 70)
    assert found.pred_masks.dtype == torch.bool
    assert found.pred_boxes.tensor.isfinite().all()
    assert ((found.scores >= cfg.MODEL.SOLO.KEEP_THRESH_TEST) & (found.scores <= 1)).all()
    assert ((found.pred_classes >= 0) & (found.pred_classes < cfg.MODEL.SOLO.NUM_CLASSES)).all()
    if "panoptic_seg" in result:
        ids, segments = result["panoptic_seg"]
        assert ids.shape == (50, 70)
        assert set(ids.unique().tolist()) - {0} == {segment["id"] for segment in segments}
        assert result["sem_seg"].isfinite().all()


def run(folder, base, changed, route):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            use(changed_config(folder, base, changed, route))
    except ConfigError as error:
        text = str(error)
    else:
        return None
    assert "\n" not in text
    assert len(text) < 2000
    assert any(name in text for key in LEAVES for name in key.split(".")[-2:]), text
    return text


def profile(number, *, same):
    """Hypothesis's settings for so many examples; whether every run tries the same ones."""
    return settings(
        max_examples=number,
        derandomize=same,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("base", sorted(BASES))
def test_unchanged_configs_run(folder, base):
    assert run(folder, base, {}, "yaml") is None


@profile(120, same=True)
@given(**CASES)
def test_runs_or_is_refused(folder, base, changed, route):
    run(folder, base, changed, route)


@pytest.fixture
def _no_more_memory():
    """What takes all memory shall fail here, and not the machine."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 * GIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.reliability
@pytest.mark.usefixtures("_no_more_memory")
@profile(4000, same=False)
@given(**CASES)
def test_thousands_run_or_are_refused(folder, base, changed, route):
    taken = peak_memory(lambda: run(folder, base, changed, route), torch.device("cpu"))
    assert taken is None or taken < 8 * GIB


VIEWS = {"TEST.AUG.ENABLED": True}
# What was found like this and mended; None runs.
FOUND = [
    # Layers without channels were built, and failed in the first step.
    ("SOLOv2Head", {"MODEL.RESNETS.WIDTH_PER_GROUP": 0}, "without any number"),
    ("panoptic SOLOHead", {"MODEL.FPN.OUT_CHANNELS": 0}, "without any number"),
    # Gigabytes were taken before anybody said no.
    ("SOLOHead", {"MODEL.RESNETS.STEM_OUT_CHANNELS": 10**9}, "MODEL.RESNETS"),
    ("vit", {"SOLVER.IMS_PER_BATCH": 10**9}, "SOLVER.IMS_PER_BATCH is 1000000000"),
    ("vit", {"MODEL.VIT.IMAGE_SIZE": 10**7}, "MODEL.VIT.IMAGE_SIZE"),
    # Groups of one channel on a map of one pixel.
    ("panoptic SOLOHead", VIEWS, None),
    # Detectron2 mirrors a view of one pixel to an array that torch does not take.
    ("regnet", {**VIEWS, "TEST.AUG.MIN_SIZES": (1, 2)}, "TEST.AUG.MIN_SIZES"),
    # The message about the value could not be written.
    ("SOLOv2Head", {"SOLVER.BASE_LR": 10**5000}, "SOLVER.BASE_LR"),
    # A key of the semantic branch, read by the augmentation of other models.
    (
        "SOLOv2Head",
        {"INPUT.LSJ.ENABLED": True, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": None},
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE is None",
    ),
    # Detectron2's refusal, an assertion without a word.
    ("regnet", {"MODEL.REGNET.W_A": 1e30}, "MODEL.REGNET"),
]


@pytest.mark.parametrize(
    ("base", "changed", "named"), FOUND, ids=[f"{x[0]} {i}" for i, x in enumerate(FOUND)]
)
def test_found_by_fuzzing(folder, base, changed, named):
    for route in ("attribute", "override"):
        text = run(folder, base, changed, route)
        assert text is None if named is None else named in text
