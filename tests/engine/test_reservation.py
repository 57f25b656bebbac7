"""One training at a time in an OUTPUT_DIR."""

import contextlib
import errno
import os
import signal
import socket
import time

import pytest

from solo_d2.engine import Trainer, reservation, setup
from solo_d2.engine.reservation import release, reserve
from solo_d2.utils.errors import ConfigError
from tests.engine.runs import run_config
from tests.modeling.tiny import tiny_config

pytestmark = [
    pytest.mark.detectron2,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@contextlib.contextmanager
def process(work):
    """A process that does some work, then waits until it is killed; gives its id."""
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            work()
            os.write(done, b"!")
            signal.alarm(120)
            time.sleep(120)
        os._exit(1)
    os.close(done)
    try:
        assert os.read(ready, 1) == b"!"
        yield child
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture(autouse=True)
def _nothing_is_held_afterwards(tmp_path):
    yield
    release(tmp_path)


def test_a_second_process_is_refused_with_the_first_ones_id_and_machine(tmp_path):
    with process(lambda: reserve(tmp_path)) as first:
        with pytest.raises(ConfigError) as refused:
            reserve(tmp_path)
        for part in (tmp_path, f"process {first} ", socket.gethostname()):
            assert str(part) in str(refused.value)
    reserve(tmp_path)  # it was killed, and leaves nothing that is in the way
    reserve(tmp_path)
    release(tmp_path)
    with process(lambda: reserve(tmp_path)):
        pass


def test_workers_that_outlive_a_killed_training_hold_nothing(tmp_path):
    def train_with_a_worker():
        reserve(tmp_path)
        if os.fork() == 0:
            signal.alarm(5)
            time.sleep(5)

    with process(train_with_a_worker):
        with pytest.raises(ConfigError):
            reserve(tmp_path)
    reserve(tmp_path)


def test_nothing_of_a_running_training_is_touched(shapes, tmp_path):
    for name in ("config.yaml", "log.txt", "model_final.pth"):
        (tmp_path / name).write_text("of the first")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    args = run_config(shapes, tmp_path, "SEED", "-1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with process(lambda: reserve(tmp_path)) as first:
        for args.resume in (False, True):
            with pytest.raises(ConfigError, match=f"process {first} "):
                setup(args)
        after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert after.pop(reservation.LOCK) != b""
        assert after == before
        # It can be evaluated meanwhile, and keeps its config, which has its seed.
        args.eval_only, args.resume = True, False
        assert setup(args).SEED >= 0
        assert (tmp_path / "config.yaml").read_text() == "of the first"


def test_a_trainer_without_setup_is_refused_too(tmp_path):
    trainer = Trainer.__new__(Trainer)
    trainer.cfg = tiny_config()
    trainer.cfg.OUTPUT_DIR = str(tmp_path)
    with process(lambda: reserve(tmp_path)), pytest.raises(ConfigError, match="is in use"):
        trainer.train()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(reservation.fcntl, "flock", flock)
    reserve(tmp_path)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(tmp_path) in caplog.text
