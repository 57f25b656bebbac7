"""Options and environment of a job. No process is started here: see test_several_processes.py."""

import pytest
from torch.multiprocessing.spawn import ProcessExitedException

from solo_d2.engine import launch as launching
from solo_d2.engine.launch import JobError, check_device, launch
from solo_d2.utils.errors import ConfigError
from tests.jobs import parse_args


@pytest.fixture(autouse=True)
def four_gpus_and_no_starter(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launching.torch.cuda, "device_count", lambda: 4)


@pytest.mark.parametrize(
    ("arguments", "environ", "named"),
    [
        (["--num-gpus", 2, "--num-processes", 2], {}, "--num-processes"),
        (["--num-gpus", 99], {}, "--num-gpus is 99"),
        (["--num-gpus", 2], {"RANK": "0", "WORLD_SIZE": "2"}, "--num-gpus"),
        (["--dist-url", "tcp://x:1"], {"RANK": "0", "WORLD_SIZE": "2"}, "--dist-url"),
        ([], {"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS"),
        (["--num-processes", 0], {}, "--num-processes is 0"),
        (["--num-gpus", -1], {}, "--num-gpus is -1"),
        (["--machine-rank", 1], {}, "--machine-rank is 1"),
        (["--dist-timeout", 0], {}, "--dist-timeout is 0"),
        (["--dist-timeout", "nan"], {}, "--dist-timeout is nan"),
    ],
)
def test_contradictory_settings_are_named(monkeypatch, arguments, environ, named):
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match=named):
        launch(pytest.fail, parse_args(*arguments))


@pytest.mark.parametrize("arguments", [[], ["--num-gpus", 1], ["--num-processes", 1]])
def test_one_process_is_this_one(monkeypatch, arguments):
    monkeypatch.setenv("RANK", "0")  # as torchrun with one process
    args = parse_args(*arguments)
    assert launch(lambda given: given, args) is args


@pytest.mark.parametrize(
    ("arguments", "passed", "visible"),
    [
        (["--num-processes", 2], (2, 1, 0, "auto"), ""),
        (
            ["--num-gpus", 2, "--num-machines", 3, "--machine-rank", 2, "--dist-url", "tcp://a:1"],
            (2, 3, 2, "tcp://a:1"),
            "0,1,2,3",
        ),
    ],
)
def test_processes_are_started_by_detectron2(monkeypatch, arguments, passed, visible):
    calls = []

    def record(_function, *values):
        calls.append((values[:4], launching.os.environ["CUDA_VISIBLE_DEVICES"]))

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setattr(launching, "detectron2_launch", record)
    assert launch(len, parse_args(*arguments)) is None
    assert calls == [(passed, visible)]
    assert launching.os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


@pytest.mark.parametrize(("exit_code", "cure"), [(-9, "--resume"), (1, "above")])
def test_a_process_that_ended_is_named(monkeypatch, exit_code, cure):
    def fail(*_):
        raise ProcessExitedException("process 1 terminated with X", 1, 7, exit_code)

    monkeypatch.setattr(launching, "detectron2_launch", fail)
    with pytest.raises(JobError, match=f"process 1 terminated with X.*{cure}"):
        launch(len, parse_args("--num-gpus", 4))


def test_a_bad_value_is_named_by_the_process_that_finds_it(capsys):
    def main(_args):
        raise ConfigError("SEED is no number")

    with pytest.raises(SystemExit) as ended:
        launching._process(main, None, 1)
    assert ended.value.code == 1
    assert capsys.readouterr().err == "ConfigError: SEED is no number\n"


@pytest.mark.parametrize(
    ("backend", "device", "named"),
    [("gloo", "cuda", "MODEL.DEVICE is cuda"), ("nccl", "cpu", "MODEL.DEVICE is cpu")],
)
def test_device_that_the_processes_are_not_for(monkeypatch, backend, device, named):
    monkeypatch.setattr(launching.dist, "get_backend", lambda: backend)
    check_device(device)  # a process of its own exchanges nothing
    monkeypatch.setattr(launching.comm, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match=named):
        check_device(device)
    check_device({"cuda": "cpu", "cpu": "cuda"}[device])


def test_a_device_that_does_not_exist():
    check_device("cuda:3")
    with pytest.raises(ConfigError, match="MODEL.DEVICE is cuda:4"):
        check_device("cuda:4")
    with pytest.raises(ConfigError, match="MODEL.DEVICE is meta, but cannot be used"):
        check_device("meta")
