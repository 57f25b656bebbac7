"""Modules of the user that --import names, and the keys that they add."""

import argparse
import sys

import pytest

from solo_d2.config import (  # noqa: E402
    add_import_argument,
    default_config,
    extensions,
    override,
    register_config,
)
from solo_d2.modeling.checks import check_model_keys
from solo_d2.utils.errors import ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder; what is imported and registered is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(extensions, "ADDED_KEYS", added := [])
    monkeypatch.setattr("solo_d2.config.files.ADDED_KEYS", added)
    monkeypatch.setattr("solo_d2.config.check.ADDED_KEYS", added)
    yield tmp_path
    for name in ("first", "second", "mine"):
        sys.modules.pop(name, None)


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_import_argument(parser)
    return parser.parse_args(arguments)


ADDS = """
from solo_d2.config import register_config

@register_config
def add(cfg):
    cfg.MODEL.SOLO.{key} = 1
"""


def test_files_and_modules_add_keys(folder):
    (folder / "some").mkdir()
    (folder / "some/first.py").write_text(ADDS.format(key="FIRST"))
    (folder / "second.py").write_text(ADDS.format(key="SECOND"))
    args = parse("--import", "some/first.py", "--import", "second")
    assert args.imports == ["some/first.py", "second"]
    solo = default_config().MODEL.SOLO
    assert solo.FIRST == solo.SECOND == 1


@pytest.mark.parametrize("name", ["gone.py", "gone", "gone.module", "some.gone"])
def test_what_is_not_there_is_an_error_of_the_command(folder, name, capsys):
    (folder / "some").mkdir()
    with pytest.raises(SystemExit):
        parse("--import", name)
    assert name in capsys.readouterr().err


def test_what_a_module_raises_keeps_its_traceback(folder):
    (folder / "mine.py").write_text("import no_such_module")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        parse("--import", "mine.py")


def test_added_keys_have_the_type_of_their_default():
    cfg = default_config()
    cfg.MODEL.SOLO.MINE, cfg.MODEL.SOLO.NUM_CLASSES = "two", 3
    check_model_keys(cfg)  # of keys that are not registered nothing is known

    @register_config
    def add(cfg):
        cfg.MODEL.SOLO.MINE = 1

    cfg = default_config()
    override(cfg, ["MODEL.SOLO.MINE", 2, "MODEL.SOLO.NUM_CLASSES", 3])
    check_model_keys(cfg)
    cfg.MODEL.SOLO.MINE = "two"
    with pytest.raises(ConfigError, match=r"MODEL\.SOLO\.MINE"):
        check_model_keys(cfg)
