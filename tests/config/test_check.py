"""Values that cannot work are refused by the name of their key, whatever way they came."""

import pytest

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from detectron2.config import get_cfg  # noqa: E402

from solo_d2.config import default_config, load_config, override  # noqa: E402
from solo_d2.data.input_checks import check_input_config  # noqa: E402
from solo_d2.engine import Trainer  # noqa: E402
from solo_d2.engine.checks import check_run_config  # noqa: E402
from solo_d2.modeling.checks import check_model_keys  # noqa: E402
from solo_d2.utils.errors import ConfigError, shown  # noqa: E402
from tests.modeling.tiny import panoptic_config, tiny_config  # noqa: E402

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


OF_A_RUN = [
    ("SOLVER.BASE_LR", NAN, "a number"),
    ("SOLVER.BASE_LR", INF, "from 0 to"),
    ("SOLVER.BASE_LR", -0.01, "from 0 to"),
    ("SOLVER.BASE_LR", "fast", "a number"),
    ("SOLVER.BASE_LR", None, "a number"),
    ("SOLVER.MAX_ITER", 0, "at least 1 iteration"),
    ("SOLVER.MAX_ITER", 90000.0, "a whole number"),
    ("SOLVER.MAX_ITER", 10**30, "a whole number"),
    ("SOLVER.MAX_ITER", 10**5000, "a whole number"),
    ("SOLVER.STEPS", (80, 60), "each after the one before"),
    ("SOLVER.STEPS", (0, 60), "iterations from 1 on"),
    ("SOLVER.STEPS", 60, "a list"),
    ("SOLVER.STEPS", ("60",), "each element is a whole number"),
    ("SOLVER.LR_SCHEDULER_NAME", "Cosine", "'WarmupCosineLR'"),
    ("SOLVER.IMS_PER_BATCH", 0, "from 1 to 65536 images"),
    ("SOLVER.IMS_PER_BATCH", 65_537, "from 1 to 65536 images"),
    ("SOLVER.REFERENCE_IMS_PER_BATCH", -1, "at least 0 images"),
    ("SOLVER.REFERENCE_WORLD_SIZE", 3, "a multiple of the 3 processes"),
    ("SOLVER.WARMUP_METHOD", "slow", "'linear'"),
    ("SOLVER.WARMUP_ITERS", -1, "at least 0"),
    ("SOLVER.WARMUP_FACTOR", 2.0, "from 0 to 1"),
    ("SOLVER.MOMENTUM", 1.0, "in [0, 1)"),
    ("SOLVER.WEIGHT_DECAY_BIAS", "0", "None or a number"),
    ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", 0.0, "above 0"),
    ("SOLVER.CHECKPOINT_PERIOD", 0, "at least 1 iteration"),
    ("SOLVER.AMP.ENABLED", 1, "True or False"),
    ("SOLVER.EMA.DECAI", 0.5, "there is SOLVER.EMA.DECAY"),
    ("DATASETS.TRAIN", "coco_2017_train", "a list"),
    ("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler", "'TrainingSampler'"),
    ("DATALOADER.NUM_WORKERS", 10**6, "from 0 to 512"),
    ("DATALOADER.REPEAT_THRESHOLD", -1.0, "from 0 to 1"),
    ("INPUT.FORMAT", "L", "'BGR'"),
    ("INPUT.MIN_SIZE_TRAIN", (), "one or more values"),
    ("INPUT.MIN_SIZE_TRAIN", (-640,), "at least 0 pixels"),
    ("INPUT.MIN_SIZE_TRAIN", (8000,), "at most MAX_SIZE_TRAIN (1333)"),
    ("INPUT.MIN_SIZE_TEST", 8000, "at most MAX_SIZE_TEST (1333)"),
    ("INPUT.RANDOM_FLIP", "both", "'horizontal'"),
    ("INPUT.CROP.TYPE", "half", "'relative_range'"),
    ("INPUT.CROP.SIZE", [1.5, 0.5], "for CROP.TYPE 'relative_range'"),
    ("INPUT.CROP.SIZE", [0.5], "2 values"),
    ("INPUT.LSJ.SIZE", 102_400, "at most 8192"),
    ("INPUT.LSJ.SCALE_RANGE", [2.0, 0.1], "the smaller first"),
    ("INPUT.COPY_PASTE.PROB", 1.5, "a probability"),
    ("TEST.EVAL_PERIOD", -1, "at least 0 iterations"),
    ("TEST.AP_BACKEND", "fast", "'pycocotools'"),
    ("TEST.AUG.MAX_SIZE", 0, "at least 1 pixel"),
    ("TEST.SPEED.DTYPE", "int8", "'bfloat16'"),
    ("SEED", 2**32, "from -1 to 2147483647"),
    ("SEED", "1", "a whole number"),
    ("OUTPUT_DIR", "", "the name of a folder"),
    ("OUTPUT_DIR", None, "a text"),
    ("FLOAT32_PRECISION", "tf32", "'highest'"),
    ("MODEL.DEVICE", "gpu", "a device of torch"),
    ("MODEL.WEIGHTS_ALLOW", "head.*", "a list"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), OF_A_RUN, ids=[x[0] for x in OF_A_RUN])
def test_a_run(key, value, allowed):
    cfg = tiny_config()
    put(cfg, key, value)
    text = refusal(check_run_config, cfg)
    assert key in text
    assert allowed in text
    if "unknown" not in text:
        assert f"{key} is {shown(value)}, but must be " in text or "IMS_PER_BATCH is 16" in text


OF_A_MODEL = [
    ("MODEL.META_ARCHITECTURE", "YOLO", "'PanopticSOLO'"),
    ("MODEL.BACKBONE.NAME", "resnet", "'build_solo_resnet_fpn_backbone'"),
    ("MODEL.BACKBONE.FREEZE_AT", -1, "at least 0"),
    ("MODEL.RESNETS.DEPTH", 51, "one of (18, 34, 50, 101, 152)"),
    ("MODEL.RESNETS.NUM_GROUPS", 7, "cannot be built"),
    ("MODEL.RESNETS.NORM", "XN", "'FrozenBN'"),
    ("MODEL.RESNETS.STEM_OUT_CHANNELS", 10**9, "at most 100,000,000"),
    ("MODEL.FPN.IN_FEATURES", [], "MODEL.FPN"),
    ("MODEL.FPN.OUT_CHANNELS", 0, "without any number"),
    ("MODEL.FPN.OUT_CHANNELS", 10**30, "a whole number"),
    ("MODEL.PIXEL_MEAN", [1.0, 2.0], "3 values"),
    ("MODEL.PIXEL_STD", [1.0, 0.0, 1.0], "from 0.001"),
    ("MODEL.PIXEL_STD", [1.0, NAN, 1.0], "each element is a number"),
    ("MODEL.SOLO.NUM_CLASSES", 80.0, "a whole number"),
    ("MODEL.SOLO.NUM_CLASSES", 10**8, "at most 100,000,000"),
    ("MODEL.SOLO.NUM_CLASES", 80, "there is MODEL.SOLO.NUM_CLASSES"),
    ("MODEL.SOLO.IN_FEATURES", [], "features of the backbone"),
    ("MODEL.SOLO.STRIDES", [8, 8, 16, 32, 64], "divisors of 32"),
    ("MODEL.SOLO.STRIDES", [8, 8, 16, 32], "5 values"),
    ("MODEL.SOLO.STRIDES", [8, 8, 16, 32, 0], "at least 1"),
    ("MODEL.SOLO.NUM_GRIDS", [40, 36, 24, 16, 10**6], "from 1 to 512"),
    ("MODEL.SOLO.SCALE_RANGES", [[1, 9, 20]] * 5, "pairs"),
    ("MODEL.SOLO.SCALE_RANGES", [[NAN, 9]] * 5, "each element is a number"),
    ("MODEL.SOLO.CENTER_SCALE", -0.2, "from 0"),
    ("MODEL.SOLO.HEAD.NUM_CONVS", 10**6, "from 1 to 100"),
    ("MODEL.SOLO.HEAD.NORM", None, "a text"),
    ("MODEL.SOLO.HEAD.PRIOR_PROB", 0.0, "from 1e-06"),
    ("MODEL.SOLO.HEAD.KERNEL_COORDS", "False", "True or False"),
    ("MODEL.SOLO.MASK_FEATURE.OUT_CHANNELS", 100, "a positive multiple of 32"),
    ("MODEL.SOLO.LOSS.MASK_WEIGHT", -3.0, "from 0"),
    ("MODEL.SOLO.LOSS.FOCAL_ALPHA", 1.5, "from 0 to 1"),
    ("MODEL.SOLO.LOSS.MEMORY_MIB", 1.5, "a whole number"),
    ("MODEL.SOLO.PRE_NMS_TOPK", 10**6, "from 1 to 10000"),
    ("MODEL.SOLO.NMS", 3, "MODEL.SOLO.NMS is unknown"),
    ("MODEL.SOLO.NMS.SIGMA", NAN, "a number"),
    ("TEST.DETECTIONS_PER_IMAGE", 0, "at least 1"),
    ("MODEL.SEM_SEG_HEAD.NORM", "XN", "'FrozenBN'"),
    ("MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", -1.0, "from 0"),
    ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 10**8, "(100000000) to 255"),
    ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 1000, "to 255"),
    ("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", "4096", "a whole number"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), OF_A_MODEL, ids=[x[0] for x in OF_A_MODEL])
def test_a_model(key, value, allowed):
    cfg = panoptic_config()
    put(cfg, key, value)
    text = refusal(Trainer.build_model, cfg)
    assert key.rpartition(".")[0] in text
    assert allowed in text


def test_combinations():
    cfg = tiny_config()
    cfg.INPUT.LSJ.ENABLED = cfg.INPUT.CROP.ENABLED = True
    assert "INPUT.CROP.ENABLED is True, but must be False" in refusal(check_input_config, cfg)
    cfg.INPUT.CROP.ENABLED, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = False, -1
    assert "IGNORE_VALUE is -1, but must be from 0 to 255" in refusal(check_input_config, cfg)
    cfg = tiny_config()
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    assert "the least and the largest side" in refusal(check_input_config, cfg)
    cfg = tiny_config()
    cfg.SOLVER.NESTEROV, cfg.SOLVER.MOMENTUM = True, 0.0
    assert "SOLVER.MOMENTUM is 0.0, but must be above 0" in refusal(check_run_config, cfg)
    cfg = tiny_config()
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.BASE_LR_END = "WarmupCosineLR", 1.0
    assert "SOLVER.BASE_LR_END is 1.0, but must be at most" in refusal(check_run_config, cfg)


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


def test_a_config_without_our_keys_says_what_to_do():
    assert "add_solo_config(cfg)" in refusal(check_run_config, get_cfg())


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("MODEL: 3", "config.yaml: "),
        ("- 1\n- 2", "config.yaml: "),
        ("3", "config.yaml: "),
        ("", "config.yaml: "),
        ("MODEL: {SOLO: {NUM_CLASES: 3}}", "there is MODEL.SOLO.NUM_CLASSES"),
        ("SOLVER: {BASE_LR: fast}", "SOLVER.BASE_LR"),
        ("SOLVER: {STEPS: 3}", "SOLVER.STEPS"),
        ("_BASE_: config.yaml", "is based on itself"),
        ("_BASE_: gone.yaml", "gone.yaml"),
        ("_BASE_: 3", "config.yaml: "),
        ("VERSION: x", "config.yaml: "),
        ("3: 4", "config.yaml: "),
        ("MODEL: {SOLO: {NMS: [}}", "config.yaml: "),
        ("OUTPUT_DIR: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("\0", "config.yaml: "),
    ],
)
def test_a_file_that_is_no_config(tmp_path, content, named):
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as error:
        load_config(str(file))
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["SOLVER.BASE_LR"], "odd length"),
        (["SOLVER.BASE_LR", 10**5000], "SOLVER.BASE_LR a huge number"),
        (["SOLVER.BASE_L", 1.0], "there is SOLVER.BASE_LR"),
        (["MODEL.WEIGHTS.", "a"], "MODEL.WEIGHTS."),
        (["MODEL.SOLO.NMS", 3], "MODEL.SOLO.NMS"),
        ([3, 3], "3 3"),
        (["_BASE_", "a.yaml"], "_BASE_"),
        (["", ""], "Non-existent key"),
    ],
    ids=[f"case {number}" for number in range(8)],
)
def test_overrides_that_change_nothing(overrides, named):
    with pytest.raises(ConfigError) as error:
        override(default_config(), overrides)
    assert named in str(error.value)
    assert "\n" not in str(error.value)
