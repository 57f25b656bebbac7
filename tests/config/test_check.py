"""Values that cannot work are refused by the name of their key, whatever way they came."""

from importlib.util import find_spec

import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.utils import comm

from solo_d2.config import default_config, load_config, override
from solo_d2.data.input_checks import check_input_config
from solo_d2.engine import Trainer
from solo_d2.engine.checks import check_run_config
from solo_d2.modeling.checks import check_model_keys
from solo_d2.utils.errors import ConfigError, shown
from tests.modeling.tiny import panoptic_config, tiny_config

NAN, INF = float("nan"), float("inf")


def put(cfg, key, value):
    *sections, name = key.split(".")
    for section in sections:
        cfg = cfg[section]
    cfg[name] = value


def refusal(check, cfg):
    with pytest.raises(ConfigError) as error:
        check(cfg)
    assert "\n" not in str(error.value)
    return str(error.value)


OF_A_RUN = {
    "SOLVER.BASE_LR": [NAN, INF, -0.01, "fast", None], "SOLVER.MAX_ITER": [0, 90000.0],
    "SOLVER.STEPS": [(80, 60), (0, 60), 60, ("60",)], "SOLVER.LR_SCHEDULER_NAME": ["Cosine"],
    "SOLVER.OPTIMIZER": ["Adam"], "SOLVER.AMP.DTYPE": ["half"], "SOLVER.EMA.DECAY": [1.0],
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ["all"], "SOLVER.IMS_PER_BATCH": [0],
    "SOLVER.REFERENCE_IMS_PER_BATCH": [-1],
    "SOLVER.WARMUP_METHOD": ["slow"], "SOLVER.WARMUP_ITERS": [-1], "SOLVER.WARMUP_FACTOR": [2.0],
    "SOLVER.MOMENTUM": [1.0], "SOLVER.WEIGHT_DECAY_BIAS": ["0"],
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": [0.0], "SOLVER.CHECKPOINT_PERIOD": [0],
    "SOLVER.AMP.ENABLED": [1], "DATASETS.TRAIN": ["coco_2017_train"],
    "DATALOADER.SAMPLER_TRAIN": ["RandomSubsetTrainingSampler"], "DATALOADER.NUM_WORKERS": [-1],
    "DATALOADER.REPEAT_THRESHOLD": [-1.0], "INPUT.FORMAT": ["L"],
    "INPUT.MIN_SIZE_TRAIN": [(), (-640,), (8000,)], "INPUT.MIN_SIZE_TEST": [8000],
    "INPUT.RANDOM_FLIP": ["both"], "INPUT.CROP.TYPE": ["half"],
    "INPUT.CROP.SIZE": [[1.5, 0.5], [0.5]], "INPUT.LSJ.SIZE": [0],
    "INPUT.LSJ.SCALE_RANGE": [[2.0, 0.1], [0.0, 0.5], [1.0]], "INPUT.COPY_PASTE.PROB": [1.5],
    "INPUT.COPY_PASTE.INSTANCE_PROB": [-0.1],
    "TEST.EVAL_PERIOD": [-1], "TEST.AP_BACKEND": ["fast"], "TEST.AP_MAX_PREDICTIONS": [99],
    "TEST.AUG.MAX_SIZE": [0], "TEST.TILES.SIZE": [-1, 64.0],
    "TEST.SPEED.DTYPE": ["int8", "bf16"], "TEST.SPEED.COMPILE": ["on"],
    "TEST.SPEED.FUSE_BN": ["yes"], "SOLVER.COMPILE": ["cuda-graphs"],
    "SEED": [2**32, "1"], "OUTPUT_DIR": ["", None],
    "FLOAT32_PRECISION": ["tf32"], "MODEL.DEVICE": ["gpu"], "MODEL.WEIGHTS_ALLOW": ["head.*"],
}  # fmt: skip
OF_A_MODEL = {
    "MODEL.META_ARCHITECTURE": ["YOLO"], "MODEL.BACKBONE.NAME": ["resnet"],
    "MODEL.BACKBONE.FREEZE_AT": [-1, 6], "MODEL.RESNETS.DEPTH": [51], "MODEL.RESNETS.NORM": ["XN"],
    "MODEL.FPN.IN_FEATURES": [[]], "MODEL.FPN.OUT_CHANNELS": [0], "MODEL.PIXEL_MEAN": [[1.0, 2.0]],
    "MODEL.PIXEL_STD": [[1.0, 0.0, 1.0], [1.0, NAN, 1.0]], "MODEL.SOLO.NUM_CLASSES": [80.0, 0],
    "MODEL.SOLO.NUM_GRIDS": [[4, 2]], "MODEL.SOLO.CELL_CONFLICT": ["first"],
    "MODEL.SOLO.IN_FEATURES": [[], ["p2", "p3", "p4", "p5", "p9"]],
    "MODEL.SOLO.SCORE_THRESH_TEST": [1.5], "MODEL.SOLO.MASK_TARGET": ["edge", "contour"],
    "MODEL.SOLO.STRIDES": [[8, 8, 16, 32, 64], [8, 8, 16, 32], [8, 8, 16, 32, 0]],
    "MODEL.SOLO.SCALE_RANGES": [[[1, 9, 20]] * 5, [[NAN, 9]] * 5, [[9, 1]] * 5],
    "MODEL.SOLO.CENTER_SCALE": [-0.2], "MODEL.SOLO.HEAD.NORM": [None],
    "MODEL.SOLO.HEAD.NAME": ["YOLO"], "MODEL.SOLO.HEAD.KERNEL_SIZE": [2],
    "MODEL.SOLO.HEAD.CONV_DIM": [48], "MODEL.SOLO.MASK_FEATURE.IN_FEATURES": [["p2", "p4"]],
    "MODEL.SOLO.HEAD.PRIOR_PROB": [0.0], "MODEL.SOLO.HEAD.KERNEL_COORDS": ["False"],
    "MODEL.SOLO.MASK_FEATURE.OUT_CHANNELS": [100], "MODEL.SOLO.LOSS.MASK_WEIGHT": [-3.0],
    "MODEL.SOLO.LOSS.FOCAL_ALPHA": [1.5], "MODEL.SOLO.LOSS.MEMORY_MIB": [1.5, -1],
    "MODEL.SOLO.NMS": [3], "MODEL.SOLO.NMS.TYPE": ["none"], "MODEL.SOLO.NMS.KERNEL": ["cubic"],
    "MODEL.SOLO.NMS.SIGMA": [NAN], "TEST.DETECTIONS_PER_IMAGE": [0],
    "MODEL.SEM_SEG_HEAD.NORM": ["XN"], "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": [-1.0],
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": [1000, 2], "MODEL.SEM_SEG_HEAD.NUM_CLASSES": [0],
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": [["p2", "p9"], ["p2", "p4"]],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": [33], "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": [1.0],
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": ["4096", 0],
}  # fmt: skip


@pytest.mark.parametrize("key", OF_A_RUN)
def test_a_run(key):
    for value in OF_A_RUN[key]:
        cfg = tiny_config()
        put(cfg, key, value)
        assert f"{key} is {shown(value)}" in refusal(check_run_config, cfg)


@pytest.mark.parametrize("key", OF_A_MODEL)
def test_a_model(key):
    for value in OF_A_MODEL[key]:
        cfg = panoptic_config()
        put(cfg, key, value)
        assert key in refusal(Trainer.build_model, cfg)


COMBINATIONS = [
    ({"INPUT.LSJ.ENABLED": True, "INPUT.CROP.ENABLED": True}, "INPUT.CROP.ENABLED"),
    (
        {"INPUT.LSJ.ENABLED": True, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": -1},
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE",
    ),
    ({"INPUT.MIN_SIZE_TRAIN_SAMPLING": "range"}, "INPUT.MIN_SIZE_TRAIN"),
    ({"INPUT.COPY_PASTE.PROB": 0.5, "INPUT.MASK_FORMAT": "polygon"}, "INPUT.MASK_FORMAT"),
    ({"SOLVER.NESTEROV": True, "SOLVER.MOMENTUM": 0.0}, "SOLVER.MOMENTUM"),
    ({"SOLVER.REFERENCE_WORLD_SIZE": 3}, "SOLVER.REFERENCE_WORLD_SIZE"),
    (
        {"SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR", "SOLVER.BASE_LR_END": 1.0},
        "SOLVER.BASE_LR_END",
    ),
    ({"TEST.TILES.SIZE": 64, "TEST.TILES.OVERLAP": 64}, "TEST.TILES.OVERLAP"),
    ({"TEST.TILES.SIZE": 64, "MODEL.SOLO.MASK_TARGET": "contour"}, "TEST.TILES.SIZE"),
    ({"TEST.TILES.SIZE": 64, "MODEL.META_ARCHITECTURE": "PanopticSOLO"}, "TEST.TILES.SIZE"),
    ({"TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": ()}, "TEST.AUG.MIN_SIZES"),
    ({"SOLVER.BASE_LR": 0.0}, "SOLVER.BASE_LR"),
    (
        {"MODEL.SOLO.LOSS.CLS_WEIGHT": 0.0, "MODEL.SOLO.LOSS.MASK_WEIGHT": 0.0},
        "MODEL.SOLO.LOSS.CLS_WEIGHT",
    ),
    *(
        ({"INPUT.MASK_FORMAT": "polygon", f"INPUT.{crop}.ENABLED": True}, "INPUT.MASK_FORMAT")
        for crop in ("CROP", "LSJ")
        if find_spec("shapely") is None
    ),
]


@pytest.mark.parametrize(("changes", "named"), COMBINATIONS)
def test_combinations_of_a_run(changes, named):
    cfg = tiny_config()
    for key, value in changes.items():
        put(cfg, key, value)
    assert named in refusal(check_run_config, cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [("MODEL.SOLO.HEAD.NAME", "SOLOHead"), ("MODEL.SOLO.MASK_FEATURE.TYPE", "separate")],
)
def test_heads_whose_mask_feature_cannot_be_shared(key, value):
    cfg = panoptic_config()
    cfg.MODEL.SEM_SEG_HEAD.SHARE_MASK_FEATURE = True
    put(cfg, key, value)
    text = refusal(Trainer.build_model, cfg)
    assert "SHARE_MASK_FEATURE" in text
    assert value in text


def test_what_is_allowed_at_the_borders_passes():
    cfg = default_config()
    check_run_config(cfg)
    check_input_config(cfg)
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = INF
    cfg.SOLVER.STEPS, cfg.SOLVER.WEIGHT_DECAY_BIAS, cfg.SOLVER.BASE_LR = (), None, 1
    cfg.MODEL.SOLO.SCALE_RANGES = [[0, 1.5], [1, INF], [2, 3], [3, 3], [4, 5]]
    cfg.MODEL.SOLO.NUM_CLASSES, cfg.MODEL.PIXEL_MEAN = 1, (0, 0, 0)
    cfg.INPUT.MIN_SIZE_TEST = 0
    check_run_config(cfg)
    check_model_keys(cfg)


def test_evaluation_uses_any_number_of_processes(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    assert "multiple of the 3 processes" in refusal(check_run_config, default_config())
    check_run_config(default_config(), training=False)


def test_a_config_without_our_keys_names_the_function_that_adds_them():
    assert "add_solo_config" in refusal(check_run_config, get_cfg())


FILES = {
    "MODEL: 3": "",
    "- 1\n- 2": "",
    "3": "",
    "": "",
    "MODEL: {SOLO: {NUM_CLASES: 3}}": "MODEL.SOLO.NUM_CLASSES",
    "SOLVER: {BASE_LR: fast}": "SOLVER.BASE_LR",
    "SOLVER: {STEPS: 3}": "SOLVER.STEPS",
    "_BASE_: config.yaml": "_BASE_",
    "_BASE_: gone.yaml": "gone.yaml",
    "_BASE_: 3": "",
    "VERSION: x": "",
    "SOLVER: {MAX_ITER: 1}\nSEED: 1\nSOLVER: {BASE_LR: 0.1}": "SOLVER twice, in lines 1 and 3",
    "SOLVER: {MAX_ITER: 1, MAX_ITER: 2}": "SOLVER.MAX_ITER twice",
    "MODEL: {SOLO: {NMS: [}}": "",
    "MODEL: !!python/object/apply:os.mkdir [MADE]": "os.mkdir",
    "MODEL: !!python/object/new:os.mkdir {args: [MADE]}": "os.mkdir",
    "MODEL:\n  WEIGHTS: !!python/name:os.system ''": "os.system",
    "MODEL: &a\n  X: *a\n": "",
    "MODEL: " + "[" * 1000 + "]" * 1000: "",
    "MODEL: {PIXEL_MEAN: '" + "(" * 500 + ")" * 500 + "'}": "",
    "_BASE_: /": "",
    "\0\1": "",
}


@pytest.mark.parametrize("content", FILES, ids=lambda content: content[:30])
def test_a_file_that_is_no_config_runs_nothing_and_is_named(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(yaml, "SafeLoader", yaml.loader.SafeLoader)  # as users have it
    file = tmp_path / "config.yaml"
    file.write_text(content)
    text = refusal(load_config, str(file))
    assert "config.yaml" in text
    assert FILES[content] in text
    assert list(tmp_path.iterdir()) == [file]


def test_honest_aliases_and_bases_are_read(tmp_path):
    (tmp_path / "base.yaml").write_text("SEED: 3")
    (tmp_path / "config.yaml").write_text(
        "_BASE_: base.yaml\nINPUT: {MIN_SIZE_TEST: &size 700, MAX_SIZE_TEST: *size}"
    )
    cfg = load_config(str(tmp_path / "config.yaml"))
    assert (cfg.SEED, cfg.INPUT.MAX_SIZE_TEST) == (3, 700)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["SOLVER.BASE_LR"], "SOLVER.BASE_LR"),
        (["SOLVER.BASE_L", 1.0], "there is SOLVER.BASE_LR"),
        (["solver.max_iter", 1], "there is SOLVER.MAX_ITER"),
        (["SOLVER.MAX_ITER", 1, "--resume"], "--resume must stand before"),
        (["SOLVER.BASE_LR", "1"], "SOLVER.BASE_LR is 1, but must have a decimal point: 1.0"),
        (["MODEL.WEIGHTS.", "a"], "MODEL.WEIGHTS."),
        (["MODEL.SOLO.NMS", 3], "MODEL.SOLO.NMS"),
        ([3, 3], "3 3"),
        (["_BASE_", "a.yaml"], "_BASE_"),
        (["", ""], "Non-existent key"),
    ],
)
def test_overrides_that_change_nothing(overrides, named):
    assert named in refusal(lambda cfg: override(cfg, overrides), default_config())
