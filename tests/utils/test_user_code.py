"""What the user's own code raises keeps its traceback; bad values stay on one line."""

import contextlib
import importlib.util
import logging
import sys
import textwrap
import traceback
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.catalog import Metadata
from detectron2.engine import HookBase
from detectron2.modeling import BACKBONE_REGISTRY, build_model

from solo_d2.data import SOLODatasetMapper, check_datasets
from solo_d2.data.loader import make_train_loader
from solo_d2.engine import Trainer, setup
from solo_d2.engine.launch import launch
from solo_d2.export.pipeline import ExportPipeline
from solo_d2.export.programs import describe, trace
from solo_d2.inference import NMS
from solo_d2.losses import MASK_LOSSES
from solo_d2.modeling.heads import SOLO_HEAD_REGISTRY
from solo_d2.utils.commands import FAILED, run_command
from solo_d2.utils.errors import ConfigError, DatasetError
from solo_d2.utils.files import naming
from solo_d2.utils.user_code import from_user_code, is_of_user
from tests import jobs
from tests.export.models import small_config, small_model
from tests.modeling.tiny import image, tiny_config, tiny_model

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "KeyError": "raise KeyError('mine')",
    "OSError": "open('/no/such/file_of_mine')",
    "disk full": "raise OSError(28, 'No space left on device')",
    "ValueError": "raise ValueError('mine')",
    "AssertionError": "assert 1 == 2, 'mine'",
    "RuntimeError": "import torch; torch.zeros(2) @ torch.zeros(3)",
}
RAISED = (KeyError, OSError, ValueError, AssertionError, RuntimeError)


@pytest.fixture
def mine(request, tmp_path):
    """A module of the user; all in it that is called ends in `fail`."""
    return load(tmp_path, KINDS[getattr(request, "param", "OSError")])


each_kind = pytest.mark.parametrize("mine", KINDS, indirect=True)


def load(folder, statement):
    file = folder / "plugin_of_user.py"
    file.write_text(
        textwrap.dedent(
            f"""
            from detectron2.config import configurable
            from detectron2.data import transforms as T
            from detectron2.engine import HookBase
            from solo_d2.data import SOLODatasetMapper
            from solo_d2.modeling.heads import SOLOv2Head

            def fail(*args, **kwargs):
                {statement}

            class Head(SOLOv2Head):
                @configurable
                def __init__(self, **arguments):
                    super().__init__(**arguments)
                    fail()

            class Calls(SOLOv2Head):
                forward = fail

            class WithoutArguments(SOLOv2Head):
                def __init__(self): pass

            class Mapper(SOLODatasetMapper):
                def __call__(self, record):
                    sample = super().__call__(record)
                    fail()

            class Transform(T.Transform):
                def apply_image(self, image): return image
                def apply_coords(self, coords): fail()

            class Hook(HookBase):
                def after_step(self): fail()
            """
        )
    )
    spec = importlib.util.spec_from_file_location("plugin_of_user", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["plugin_of_user"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registered(monkeypatch):
    """Register things for a test: `registered(registry, name, thing)`."""

    def add(registry, name, thing):
        entries = getattr(registry, "_obj_map", getattr(registry, "data", registry))
        monkeypatch.setitem(entries, name, thing)

    return add


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    jobs.make_data(folder)
    return folder, jobs.write_config(folder)


@contextlib.contextmanager
def shown(module):
    """An error is raised that is the user's; its traceback has the user's file and line."""
    with pytest.raises(RAISED) as error:
        yield error
    assert not isinstance(error.value, (ConfigError, DatasetError))
    text = "".join(traceback.format_exception(error.value))
    assert f'File "{module.__file__}", line 9' in text
    assert from_user_code(error.value)


@each_kind
def test_head_that_fails_in_its_constructor(mine, registered):
    registered(SOLO_HEAD_REGISTRY, "Mine", mine.Head)
    with shown(mine) as error:
        build_model(tiny_config("Mine"))
    if sys.version_info >= (3, 11):
        assert "MODEL.SOLO" in error.value.__notes__[0]


def test_parts_that_fail_or_are_called_wrongly(mine, registered):
    registered(BACKBONE_REGISTRY, "mine", mine.fail)
    cfg = tiny_config()
    cfg.MODEL.BACKBONE.NAME = "mine"
    with shown(mine):
        build_model(cfg)
    # No line of the user's runs, yet it is the user's part that has to be changed.
    registered(SOLO_HEAD_REGISTRY, "Mine", mine.WithoutArguments)
    with pytest.raises(TypeError):
        build_model(tiny_config("Mine"))


def test_head_nms_and_loss_that_fail_when_called(mine, registered):
    registered(SOLO_HEAD_REGISTRY, "Mine", mine.Calls)
    with shown(mine):
        build_model(tiny_config("Mine")).eval()([image()])
    registered(NMS, "mine", mine.fail)
    registered(MASK_LOSSES, "mine", mine.fail)
    cfg = tiny_config()
    cfg.MODEL.SOLO.NMS.TYPE = cfg.MODEL.SOLO.LOSS.MASK_TYPE = "mine"
    model = tiny_model(cfg, sure=True)
    for use in (model.eval, model.train):
        with shown(mine):
            use()([image()])


def test_export_of_a_backbone_that_fails(mine):
    model = small_model()
    pipeline = ExportPipeline(model)
    info = describe(model, pipeline, small_config(), [], [])
    pipeline.backbone.forward = mine.fail
    with shown(mine):
        trace(pipeline, info)


@each_kind
def test_function_of_a_data_set(mine, registered):
    registered(DatasetCatalog, "of_user", mine.fail)
    registered(MetadataCatalog, "of_user", Metadata(name="of_user", thing_classes=["a"]))
    check_datasets(["of_user"])
    with shown(mine):
        DatasetCatalog.get("of_user")
    cfg = tiny_config()
    cfg.DATASETS.TRAIN = ("of_user",)
    with shown(mine):
        Trainer.build_train_loader(cfg)


def record(folder):
    square = [[10.0, 10.0, 50.0, 10.0, 50.0, 50.0, 10.0, 50.0]]
    return {
        "file_name": str(folder / "train/1.png"),
        "image_id": 1,
        "height": 96,
        "width": 128,
        "annotations": [{"category_id": 0, "segmentation": square, "iscrowd": 0}],
    }


@pytest.mark.parametrize("mine", ["KeyError", "RuntimeError"], indirect=True)
def test_transform(mine, job):
    mapper = SOLODatasetMapper(tiny_config(), is_train=True)
    mapper.augmentations = T.AugmentationList([mine.Transform()])
    with shown(mine):
        mapper(record(job[0]))


@pytest.mark.parametrize("workers", [0, 1])
def test_mapper_in_workers(mine, job, workers):
    loader = make_train_loader(
        [record(job[0])],
        mine.Mapper(tiny_config(), is_train=True),
        total_batch_size=1,
        seed=0,
        max_unreadable=0,
        num_workers=workers,
    )
    with shown(mine):
        run_command("train", lambda: next(iter(loader)))


@pytest.mark.parametrize("mine", ["OSError", "disk full"], indirect=True)
def test_hook_of_a_training(mine, job, tmp_path, caplog):
    """It neither becomes one line nor gets the name of OUTPUT_DIR."""

    def main(args):
        cfg = setup(args)
        with naming(cfg.OUTPUT_DIR):
            trainer = Trainer(cfg)
            trainer.register_hooks([mine.Hook()])
            trainer.train()

    args = jobs.parse_args("--config-file", job[1], "OUTPUT_DIR", tmp_path / "out")
    with caplog.at_level(logging.ERROR, "detectron2"), shown(mine) as error:
        run_command("", lambda: launch(main, args), failed=1)
    assert error.value.filename != str(tmp_path / "out")


def test_errors_of_values_are_one_line(tmp_path, capsys):
    """The other half: the same kinds of errors, raised by ours and Detectron2's code."""
    cfg = tiny_config()
    cfg.MODEL.RESNETS.NUM_GROUPS = 7
    assert run_command("train", lambda: build_model(cfg)) == FAILED
    cfg = jobs.parse_args("--config-file", tmp_path / "none.yaml")
    assert run_command("train", lambda: setup(cfg)) == FAILED
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "MODEL.RESNETS" in lines[0]
    assert "none.yaml" in lines[1]


def test_owner_of_a_class(mine):
    assert is_of_user(mine.Head)
    assert not is_of_user(SOLODatasetMapper)
    assert not is_of_user(HookBase)
