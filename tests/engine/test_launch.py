"""Who has started a job's processes, and settings that contradict it. No process is started."""

import argparse

import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from solo_d2.engine import launch as launching  # noqa: E402
from solo_d2.engine import setup  # noqa: E402
from solo_d2.engine.launch import (  # noqa: E402
    JobError,
    Place,
    check_device,
    find_place,
    first_host,
    launch,
)
from solo_d2.utils.commands import run_process  # noqa: E402
from solo_d2.utils.errors import ConfigError, DatasetError  # noqa: E402
from tests.jobs import parse_args  # noqa: E402

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
TORCHRUN |= {"MASTER_ADDR": "first", "MASTER_PORT": "29500"}
SRUN = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NNODES": "2"}
SRUN |= {"SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "2", "SLURM_JOB_NODELIST": "gpu[07-08,11],x"}


def test_torchrun_is_recognised():
    place = find_place({**TORCHRUN, **SRUN})  # srun may start one torchrun on each machine
    assert place == Place("torchrun", 5, 8, 1, 4, "env://")
    assert find_place({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}) is None
    assert find_place({}) is None


def test_srun_is_recognised():
    assert find_place(SRUN) == Place("SLURM", 5, 8, 1, 4, f"tcp://gpu07:{12_000 + 12_342}")
    # What the step has comes before what the job has.
    step = {"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "1", "SLURM_LOCALID": "5"}
    step |= {"SLURM_STEP_NODELIST": "gpu11", "MASTER_PORT": "400"}
    assert find_place({**SRUN, **step}) == Place("SLURM", 5, 6, 5, 6, "tcp://gpu11:400")
    assert find_place({**SRUN, "MASTER_ADDR": "there"}).url.startswith("tcp://there:")
    assert find_place({**SRUN, "SLURM_NTASKS": "1"}) is None
    in_batch_script = {key: value for key, value in SRUN.items() if key != "SLURM_STEP_ID"}
    assert find_place(in_batch_script) is None


@pytest.mark.parametrize(
    ("node_list", "first"),
    [
        ("node3", "node3"),
        ("a,b[1-2]", "a"),
        ("gpu[03-05,9],login", "gpu03"),
        ("gpu[9,03-05]", "gpu9"),
        ("rack[1-2]n[07,08]-ib,z", "rack1n07-ib"),
    ],
)
def test_first_host_of_slurms_list(node_list, first):
    assert first_host(node_list) == first


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR"),
        ({**TORCHRUN, "WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "3"}, "as many on each machine"),
        ({**SRUN, "SLURM_LOCALID": "2"}, "--distribution block"),
        ({**SRUN, "SLURM_NTASKS": "7"}, "--ntasks-per-node"),
        ({**SRUN, "SLURM_JOB_NODELIST": ""}, "SLURM_NODELIST"),
        ({key: SRUN[key] for key in SRUN if key != "SLURM_LOCALID"}, "SLURM_LOCALID is not"),
    ],
)
def test_incomplete_environment_is_named(environ, named):
    with pytest.raises(ConfigError, match=named):
        find_place(environ)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--num-gpus", 2, "--num-processes", 2], "give one"),
        (["--num-gpus", 99], "--num-gpus is 99, but torch finds .* --num-processes"),
        (["--num-processes", 0], "--num-processes is 0"),
        (["--num-processes", 1, "--num-machines", 2], "give --dist-url tcp://HOST:PORT"),
        (["--num-machines", 2, "--machine-rank", 2], r"--machine-rank is 2, .* \[0, 2\)"),
    ],
)
def test_contradictory_options_are_named(monkeypatch, arguments, named):
    monkeypatch.setattr(launching, "find_place", lambda environ: None)
    with pytest.raises(ConfigError, match=named):
        launch(pytest.fail, parse_args(*arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--num-gpus", 8],
        ["--num-processes", 2],
        ["--num-machines", 3],
        ["--machine-rank", 0],
        ["--dist-url", "tcp://x:1"],
    ],
)
def test_options_that_contradict_the_environment_are_named(monkeypatch, arguments):
    for key, value in TORCHRUN.items():
        monkeypatch.setenv(key, value)
    text = rf"{arguments[0]} is {arguments[1]}, but torchrun has started 8 processes, 4 on each"
    with pytest.raises(ConfigError, match=text):
        launch(pytest.fail, parse_args(*arguments))


def test_agreeing_options_are_accepted():
    args = parse_args("--num-gpus", 4, "--num-machines", 2, "--machine-rank", 1)
    launching._require_agreement(args, find_place(TORCHRUN))


def test_one_process_is_this_one(monkeypatch):
    monkeypatch.setattr(launching, "find_place", lambda environ: None)
    for arguments in ([], ["--num-gpus", 1], ["--num-processes", 1]):
        args = parse_args(*arguments)
        assert launch(lambda given: (given, torch.get_num_threads()), args)[0] is args


@pytest.mark.parametrize(
    ("starter", "local_rank", "num_visible", "gpu"),
    [("torchrun", 3, 0, None), ("torchrun", 3, 4, 3), ("SLURM", 3, 8, 3), ("SLURM", 3, 1, 0)],
)
def test_each_process_has_a_gpu(starter, local_rank, num_visible, gpu):
    place = Place(starter, 4 + local_rank, 8, local_rank, 4, "env://")
    assert launching._gpu_of(place, num_visible) == gpu


@pytest.mark.parametrize(("starter", "num_visible"), [("torchrun", 1), ("SLURM", 3)])
def test_more_processes_than_gpus_are_refused(starter, num_visible):
    place = Place(starter, 5, 8, 1, 4, "env://")
    with pytest.raises(ConfigError, match=f"4 processes on this machine, but .* {num_visible} GPU"):
        launching._gpu_of(place, num_visible)


def test_gpus_are_given_to_detectron2s_launcher(monkeypatch):
    calls = []
    monkeypatch.setattr(launching, "find_place", lambda environ: None)
    monkeypatch.setattr(launching.torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(launching, "detectron2_launch", lambda *args: calls.append(args))
    launch(len, parse_args("--num-gpus", 4))
    several = ["--num-machines", 3, "--machine-rank", 2, "--dist-url", "tcp://first:1"]
    launch(len, parse_args("--num-gpus", 2, *several))
    assert [call[:5] for call in calls] == [
        (run_process, 4, 1, 0, "auto"),
        (run_process, 2, 3, 2, "tcp://first:1"),
    ]
    assert [(call[5][0], call[5][1].num_gpus) for call in calls] == [(len, 4), (len, 2)]


TRACEBACK = (
    "-- Process 1 terminated with the following error:\nTraceback (most recent call last):\n"
    f'  File "{launching.__file__}", line 1, in _cpu_process\n    run_process(main, args)\n'
    f'  File "{setup.__code__.co_filename}", line 1, in setup\n    register()\n'
)
OF_USER = f'{TRACEBACK}  File "/home/me/my_mapper.py", line 7, in read\n    open(file)\n'


@pytest.mark.parametrize(
    ("raised", "expected", "text"),
    [
        (
            ProcessRaisedException(f"{TRACEBACK}solo_d2.utils.errors.ConfigError: X is 1\n", 1, 7),
            ConfigError,
            "^X is 1$",
        ),
        (
            ProcessRaisedException(
                f"{TRACEBACK}solo_d2.utils.errors.DatasetError: no file\n", 1, 7
            ),
            DatasetError,
            "^no file$",
        ),
        (ProcessRaisedException(f"{TRACEBACK}KeyError: 1\n", 1, 7), ProcessRaisedException, "Key"),
        (
            ProcessRaisedException(f"{TRACEBACK}OSError: [Errno 28] No space: 'a.pth'\n", 1, 7),
            OSError,
            "No space: 'a.pth'",
        ),
        # The user's own code: its line is to be seen, and a cause of another kind is not the error.
        (
            ProcessRaisedException(f"{OF_USER}OSError: [Errno 2] No such file: 'a'\n", 1, 7),
            ProcessRaisedException,
            "my_mapper.py",
        ),
        (
            ProcessRaisedException(
                f"{TRACEBACK}solo_d2.utils.errors.ConfigError: X\n\nThe above exception was the "
                f"direct cause of the following exception:\n\n{OF_USER}ValueError: mine\n",
                *(1, 7),
            ),
            ProcessRaisedException,
            "ValueError: mine",
        ),
        (ProcessExitedException("", 2, 7, -15, "SIGTERM"), JobError, "Process 2 .* by SIGTERM"),
        (ProcessExitedException("", 0, 7, 3), JobError, "Process 0 .* with exit code 3"),
    ],
)
def test_errors_of_processes_are_raised_as_they_were(monkeypatch, raised, expected, text):
    def fail(*args):
        raise raised

    monkeypatch.setattr(launching, "find_place", lambda environ: None)
    monkeypatch.setattr(launching.torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(launching, "detectron2_launch", fail)
    with pytest.raises(expected, match=text):
        launch(len, parse_args("--num-gpus", 4))


@pytest.mark.parametrize(
    ("backend", "device", "named"),
    [("gloo", "cuda", "set MODEL.DEVICE cpu"), ("nccl", "cpu", "--num-processes")],
)
def test_device_that_the_processes_are_not_for(monkeypatch, backend, device, named):
    monkeypatch.setattr(launching.dist, "get_backend", lambda: backend)
    check_device(device)  # a process of its own exchanges nothing
    monkeypatch.setattr(launching.comm, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match=named):
        check_device(device)
    check_device({"cuda": "cpu", "cpu": "cuda"}[device])


def test_arguments_that_are_not_given_are_none():
    args = parse_args()
    assert isinstance(args, argparse.Namespace)
    names = ("num_gpus", "num_processes", "num_machines", "machine_rank", "dist_url")
    assert [getattr(args, name) for name in names] == [None] * 5
    assert args.dist_timeout == 30
