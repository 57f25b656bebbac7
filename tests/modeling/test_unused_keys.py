"""Keys that the chosen model does not read: named in one warning, and without any effect."""

import logging
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone

from solo_d2.config import load_config, override
from solo_d2.config.models import is_panoptic
from solo_d2.config.rules import leaves
from solo_d2.data import SOLODatasetMapper, register_datasets_of_config
from solo_d2.data.other_models import without_other_inputs
from solo_d2.engine import Trainer
from solo_d2.evaluation import build_evaluator, evaluation_loader
from solo_d2.modeling.backbones.pyramid import read_features
from solo_d2.modeling.heads import SOLO_HEAD_REGISTRY, SOLOv2Head
from solo_d2.modeling.meta_arch import SOLO, PanopticSOLO
from solo_d2.modeling.unused_keys import OTHER_MODELS, set_in_vain, warn_of_unused_keys
from tests import jobs
from tests.config.test_configs import CONFIGS, Recorder
from tests.modeling.test_backbones import small
from tests.modeling.tiny import panoptic_config, tiny_config

pytestmark = pytest.mark.detectron2


SOLOV2 = "configs/quickstart/solov2_shapes.yaml"
BASES = {
    "SOLO": lambda: tiny_config("SOLOHead"),
    "SOLOv2": tiny_config,
    "panoptic": panoptic_config,
    **{kind: lambda kind=kind: small(kind) for kind in ("swin", "vit", "regnet")},
    "timm": lambda: changed(
        *("MODEL.BACKBONE.NAME", "build_solo_timm_fpn_backbone", "MODEL.TIMM.NAME", "lcnet_050")
    ),
    "AdamW, cosine": lambda: changed("SOLVER.OPTIMIZER", "AdamW", *COSINE),
    "fixed gamma": lambda: changed("SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR"),
}
COSINE = ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR")


def changed(*overrides):
    cfg = tiny_config()
    override(cfg, overrides)
    return cfg


def given(cfg):
    """All keys of a config, as if they were on the command line."""
    return [part for key, _ in leaves(cfg) for part in (key, None)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set to train and evaluate on; the names of its config's keys."""
    folder = tmp_path_factory.mktemp("unused")
    jobs.make_data(folder)
    cfg = load_config(str(jobs.write_config(folder)))
    register_datasets_of_config(cfg)
    yield
    for name in ("job_train", "job_val"):
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def prepare(cfg):
    """All that a training and its evaluation make of a config before the first step."""
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("job_train",), ("job_val",)
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 2, 0
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    Trainer.build_lr_scheduler(cfg, optimizer)
    loader = Trainer.build_train_loader(cfg)
    Trainer.build_test_loader(cfg, "job_val")
    evaluation_loader(cfg, "job_val")
    build_evaluator(cfg, "job_val")
    return loader


@pytest.mark.parametrize("base", BASES)
@pytest.mark.usefixtures("data")
def test_keys_that_are_named_are_not_read(base):
    if base in ("swin", "vit", "timm"):
        pytest.importorskip("timm")
    cfg, seen = BASES[base](), set()
    named = set_in_vain(cfg, overrides=given(cfg)).keys()
    assert {"MODEL.KEYPOINT_ON", "MODEL.ROI_HEADS.NUM_CLASSES"} <= named
    for section, node in list(cfg.items()):
        if hasattr(node, "items"):
            dict.__setitem__(cfg, section, Recorder(node, seen, section))
    prepare(cfg)
    assert "SOLVER.BASE_LR" in seen
    # The first two are looked at to ask Detectron2 for neither, the mean for the number of
    # channels, the type of clipping before ENABLED, the others for their ranges.
    looked_at = {"MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS", "MODEL.SOLO.HEAD.NUM_COORD_CONVS"}
    looked_at |= {"MODEL.SOLO.NMS.THRESH", "MODEL.SOLO.LOSS.MASK_POS_WEIGHT", "MODEL.PIXEL_MEAN"}
    looked_at |= {"INPUT.CROP.TYPE", "INPUT.CROP.SIZE", "TEST.AUG.MAX_SIZE"}
    looked_at |= {"SOLVER.CLIP_GRADIENTS.CLIP_TYPE"}
    assert named & seen <= looked_at


def test_every_key_of_other_models_is_named():
    cfg = tiny_config()
    sections = [f"{section}." for section in OTHER_MODELS]
    foreign = {k for k, _ in leaves(cfg) if k in OTHER_MODELS or k.startswith(tuple(sections))}
    assert len(foreign) > 90
    assert foreign - {"MODEL.MASK_ON"} <= set_in_vain(cfg, overrides=given(cfg)).keys()
    unknown = [key for key in OTHER_MODELS if not any(k.startswith(key) for k, _ in leaves(cfg))]
    assert unknown == []


@pytest.mark.parametrize("file", CONFIGS)
def test_our_own_configs_name_nothing(file):
    assert set_in_vain(load_config(file), file) == {}


OTHERS = {
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": (0.05, "MODEL.SOLO.KEEP_THRESH_TEST"),  # the default
    "MODEL.RETINANET.NUM_CLASSES": (7, "MODEL.SOLO.NUM_CLASSES"),
    "MODEL.RPN.POST_NMS_TOPK_TEST": (10, ""),
    "MODEL.ANCHOR_GENERATOR.SIZES": ([[32]], "MODEL.SOLO.SCALE_RANGES"),
    "MODEL.MASK_ON": (False, ""),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": (9, "MODEL.META_ARCHITECTURE SOLO"),
    "MODEL.SWIN.EMBED_DIM": (128, "MODEL.BACKBONE.NAME build_solo_resnet_fpn_backbone"),
    "TEST.KEYPOINT_OKS_SIGMAS": ([0.1], ""),
    "MODEL.SOLO.NMS.THRESH": (0.6, "MODEL.SOLO.NMS.TYPE matrix"),
    "MODEL.SOLO.LOSS.MASK_POS_WEIGHT": (3.0, "MODEL.SOLO.LOSS.MASK_TYPE dice"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": (5.0, "SOLVER.CLIP_GRADIENTS.ENABLED False"),
    "INPUT.COPY_PASTE.INSTANCE_PROB": (0.9, "INPUT.COPY_PASTE.PROB 0"),
    "TEST.TILES.OVERLAP": (9, "TEST.TILES.SIZE 0"),
    "DATALOADER.REPEAT_THRESHOLD": (0.5, "TrainingSampler"),
}


@pytest.mark.parametrize("key", OTHERS)
def test_of_the_command_line(key, caplog):
    value, instead = OTHERS[key]
    cfg = load_config(SOLOV2, [key, value])
    with caplog.at_level(logging.WARNING, "solo_d2"):
        warn_of_unused_keys(cfg, SOLOV2, [key, value])
    (record,) = caplog.records
    assert key in record.getMessage()
    assert instead in record.getMessage()


def test_one_warning_for_the_keys_of_the_users_file(tmp_path, caplog):
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"_BASE_: {Path(SOLOV2).resolve()}\n"
        "MODEL: {ROI_HEADS: {NUM_CLASSES: 3, IN_FEATURES: [p2]}, VIT: {DEPTH: 3}, MASK_ON: True}\n"
        "SOLVER: {OPTIMIZER: AdamW, NESTEROV: True, BASE_LR: 0.001}\n"
    )
    cfg = load_config(str(file))
    of_other_models = {"MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.ROI_HEADS.IN_FEATURES"}
    of_other_choices = {"MODEL.VIT.DEPTH", "SOLVER.NESTEROV"}
    assert set_in_vain(cfg, file).keys() == of_other_models | of_other_choices
    with caplog.at_level(logging.WARNING, "solo_d2"):
        warn_of_unused_keys(cfg, file)
    assert len(caplog.records) == 1
    # What a training saves has all keys of the config, those of our bases too.
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert set_in_vain(cfg, tmp_path / "config.yaml").keys() == of_other_models


def test_other_models_and_heads_of_the_user_may_read_any_key(monkeypatch):
    key = "MODEL.ROI_HEADS.NUM_CLASSES"
    zoo = load_config("configs/comparison/mask_rcnn_EfficientNetLite0_photos.yaml", [key, 3])
    assert set_in_vain(zoo, overrides=[key, 3]) == {}

    class HeadOfUser(SOLOv2Head):
        pass

    monkeypatch.setitem(SOLO_HEAD_REGISTRY._obj_map, "HeadOfUser", HeadOfUser)
    cfg = changed("MODEL.SOLO.HEAD.NAME", "HeadOfUser")
    assert set_in_vain(cfg, overrides=["MODEL.SOLO.HEAD.NUM_COORD_CONVS", 1]) == {}


@pytest.mark.parametrize("parent", [SOLO, PanopticSOLO])
def test_a_subclass_is_treated_as_its_parent(parent, monkeypatch):
    class Mine(parent):
        pass

    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "Mine", Mine)
    found = []
    for name in (parent.__name__, "Mine"):
        cfg = panoptic_config()
        cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.KEYPOINT_ON = name, True
        cfg.MODEL.SOLO.IN_FEATURES = ["p3", "p4"]
        pyramid = build_backbone(cfg)
        parts = (read_features(cfg, pyramid), is_panoptic(cfg))
        keys = set_in_vain(cfg, overrides=given(cfg)).keys()
        found.append((*parts, keys, without_other_inputs(cfg).MODEL.KEYPOINT_ON))
    assert found[0] == found[1]
    assert found[0][1] == (parent is PanopticSOLO)


@pytest.mark.parametrize("key", ["MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS"])
@pytest.mark.usefixtures("data")
def test_keypoints_and_proposals_change_nothing(key):
    plain, cfg = tiny_config(), tiny_config()
    override(cfg, [key, True])
    expected, loader = prepare(plain), prepare(cfg)
    assert len(loader.dataset) == len(expected.dataset) == 8
    record = DatasetCatalog.get("job_train")[0]
    mapper = SOLODatasetMapper(cfg, is_train=True)
    sample = mapper(
        {**record, "annotations": [{**a, "keypoints": [1, 1, 2]} for a in record["annotations"]]}
    )
    assert "proposals" not in sample
    assert not sample["instances"].has("gt_keypoints")
