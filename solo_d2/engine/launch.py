"""Processes of a job: started here, or those that torchrun or SLURM have started.

What started a process is recognised by the environment:

- torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT,
- srun sets SLURM_PROCID, SLURM_LOCALID and SLURM_NTASKS, and names the machines,
- else `--num-gpus` starts processes by Detectron2's `launch`, and `--num-processes` on the CPU.

Processes with GPUs exchange gradients by NCCL, others by gloo.
"""

import argparse
import contextlib
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import create_ddp_model
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch import multiprocessing, nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from solo_d2.utils.commands import TERMINATED, cause_of_end, run_process
from solo_d2.utils.errors import BadNumbersError, ConfigError, DatasetError
from solo_d2.utils.user_code import in_user_code, last_error

Main = Callable[[argparse.Namespace], Any]

TORCHRUN, SLURM = "torchrun", "SLURM"
# A job that waits this long for one of its processes ends. Longer than what one process does alone
# while the others wait, as when it counts AP.
TIMEOUT_MINUTES = 30.0
# Ports at which the processes of SLURM's jobs meet, by the numbers of job and step.
_FIRST_PORT, _NUM_PORTS = 12_000, 20_000


class JobError(RuntimeError):
    """A process of the job ended, and the job with it; the message says which, and what to do."""


@dataclass(frozen=True)
class Place:
    """A process's place in a job that something else has started.

    Attributes:
        starter: who started it, for messages.
        rank: number of the process in the job, from 0; that of a machine's processes are one after
            the other.
        world_size: processes of the job.
        local_rank: number on its machine.
        local_size: processes on each machine.
        url: where the processes meet; see `torch.distributed.init_process_group`.
    """

    starter: str
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    url: str

    def __post_init__(self) -> None:
        expected = self.rank % self.local_size
        if self.world_size % self.local_size or self.local_rank != expected:
            raise ConfigError(
                f"{self.starter} started {self.world_size} processes, of which number {self.rank} "
                f"is number {self.local_rank} of {self.local_size} on its machine. There must be "
                "as many on each machine, numbered machine by machine; for srun: "
                "--ntasks-per-node N --distribution block"
            )


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `launch` reads to Detectron2's arguments; those not given are None."""
    group = parser.add_argument_group("processes (leave these out under torchrun and srun)")
    group.add_argument(
        "--num-processes", type=int, help="processes on this machine that train on the CPU"
    )
    group.add_argument(
        "--dist-timeout",
        type=float,
        default=TIMEOUT_MINUTES,
        metavar="MINUTES",
        help="wait this long for other processes before the job ends (%(default)g)",
    )
    parser.set_defaults(num_gpus=None, num_machines=None, machine_rank=None, dist_url=None)


def launch(main: Main, args: argparse.Namespace) -> Any:
    """Run a function in every process of the job that arguments and environment describe.

    Args:
        main: takes the arguments; of a module, as new processes import it.
        args: with those of `add_launch_arguments`.

    Returns:
        What `main` returns, where this process calls it; None where it starts others.

    Raises:
        ConfigError: settings contradict each other or the machine, or `main` raises it.
        DatasetError: `main` raises it.
        JobError: a process was killed.
    """
    place = find_place(os.environ)
    timeout = timedelta(minutes=args.dist_timeout)
    if place is not None:
        _require_agreement(args, place)
        with _joined(place, timeout):
            return main(args)
    per_machine, machines, url = _processes_to_start(args)
    if per_machine * machines == 1:
        return main(args)
    with _errors_of_processes():
        if args.num_processes is None:
            rank = args.machine_rank or 0
            work = (main, args)
            detectron2_launch(run_process, per_machine, machines, rank, url, work, timeout)
        else:
            _start_on_cpu(main, args, per_machine, machines, url, timeout)
    return None


def distribute(model: nn.Module) -> nn.Module:
    """Make the processes of the job train a model together; alone it stays as it is.

    Args:
        model: on the process's device, a GPU or the CPU. Buffers are not exchanged.
    """
    # Detectron2's default is the GPU of the process's number on its machine, though there is none,
    # or only one is visible to each process.
    device = next(model.parameters()).device
    devices = [device.index] if device.type == "cuda" else None
    return create_ddp_model(model, broadcast_buffers=False, device_ids=devices)


def check_device(device: str) -> None:
    """Raise a ConfigError if the job's processes cannot exchange tensors of MODEL.DEVICE."""
    if comm.get_world_size() == 1:
        return
    backend = dist.get_backend()
    if device.startswith("cuda") and backend != "nccl":
        raise ConfigError(
            f"MODEL.DEVICE is {device}, but --num-processes starts processes for the CPU: set "
            "MODEL.DEVICE cpu, or give --num-gpus instead"
        )
    if device == "cpu" and backend == "nccl":
        raise ConfigError(
            "MODEL.DEVICE is cpu, but the processes were started for GPUs. Start them with "
            "--num-processes, or by torchrun and srun with CUDA_VISIBLE_DEVICES set to nothing"
        )


def find_place(environ: Mapping[str, str]) -> Place | None:
    """The place that torchrun or srun gives this process; None for a process of its own.

    Raises:
        ConfigError: the environment is incomplete or contradicts itself.
    """
    # torchrun first: srun may start one on each machine.
    return _place_by_torchrun(environ) or _place_by_slurm(environ)


def _place_by_torchrun(environ: Mapping[str, str]) -> Place | None:
    if "RANK" not in environ or _number(environ, "WORLD_SIZE", 1) == 1:
        return None
    needed = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in environ]
    if missing:
        raise ConfigError(
            f"The environment has RANK and WORLD_SIZE, but not {', '.join(missing)}. Start the "
            "processes by torchrun, or unset RANK and WORLD_SIZE"
        )
    return Place(
        starter=TORCHRUN,
        rank=_number(environ, "RANK"),
        world_size=_number(environ, "WORLD_SIZE"),
        local_rank=_number(environ, "LOCAL_RANK"),
        local_size=_number(environ, "LOCAL_WORLD_SIZE"),
        url="env://",
    )


def _place_by_slurm(environ: Mapping[str, str]) -> Place | None:
    # In the batch script itself SLURM_PROCID is set too, but there is no step: not srun started it.
    in_batch_script = "SLURM_JOB_ID" in environ and "SLURM_STEP_ID" not in environ
    if "SLURM_PROCID" not in environ or in_batch_script:
        return None
    world_size = _number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    if world_size == 1:
        return None
    machines = _number(environ, "SLURM_STEP_NUM_NODES", "SLURM_NNODES", 1)
    return Place(
        starter=SLURM,
        rank=_number(environ, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_number(environ, "SLURM_LOCALID"),
        local_size=max(1, world_size // machines),
        url=f"tcp://{_slurm_host(environ)}:{_slurm_port(environ)}",
    )


def _slurm_host(environ: Mapping[str, str]) -> str:
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        if environ.get(name):
            return environ.get("MASTER_ADDR") or first_host(environ[name])
    raise ConfigError(
        "SLURM started several processes, but none of SLURM_STEP_NODELIST, SLURM_JOB_NODELIST and "
        "SLURM_NODELIST is set, so it is not known where they meet"
    )


def _slurm_port(environ: Mapping[str, str]) -> int:
    if "MASTER_PORT" in environ:
        return _number(environ, "MASTER_PORT")
    job, step = (_number(environ, name, 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return _FIRST_PORT + (10 * job + step) % _NUM_PORTS


def first_host(node_list: str) -> str:
    """The first machine of a list in SLURM's form, such as "gpu[03-05,9],login": gpu03."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", node_list)
    assert first is not None  # it matches the empty text
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group())


def _number(environ: Mapping[str, str], *names: str | int) -> int:
    """The first variable of these that is set, or the number that comes last."""
    for name in names:
        if isinstance(name, int):
            return name
        if name in environ:
            try:
                return int(environ[name])
            except ValueError:
                raise ConfigError(
                    f"{name} is {environ[name]!r} in the environment, but must be a whole number"
                ) from None
    raise ConfigError(f"{names[-1]} is not in the environment, though what belongs to it is")


def _require_agreement(args: argparse.Namespace, place: Place) -> None:
    """Refuse options that contradict what has started the processes."""
    expected = {
        "num_gpus": place.local_size,
        "num_processes": place.local_size,
        "num_machines": place.world_size // place.local_size,
        "machine_rank": place.rank // place.local_size,
        "dist_url": place.url,
    }
    for name, value in expected.items():
        given = getattr(args, name)
        if given not in (None, value):
            raise ConfigError(
                f"--{name.replace('_', '-')} is {given}, but {place.starter} has started "
                f"{place.world_size} processes, {place.local_size} on each machine: leave the "
                "option out"
            )


def _processes_to_start(args: argparse.Namespace) -> tuple[int, int, str]:
    """Processes of each machine, machines, and where they meet, as far as options say."""
    if args.num_gpus is not None and args.num_processes is not None:
        raise ConfigError(
            "--num-gpus starts processes with GPUs, --num-processes those of the CPU: give one"
        )
    per_machine, machines = args.num_processes or args.num_gpus or 1, args.num_machines or 1
    for name in ("num_gpus", "num_processes", "num_machines"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}, but must be at least 1")
    if args.num_processes is None and per_machine > max(1, torch.cuda.device_count()):
        raise ConfigError(
            f"--num-gpus is {per_machine}, but torch finds {torch.cuda.device_count()} GPUs. For "
            "processes on the CPU give --num-processes"
        )
    if not 0 <= (args.machine_rank or 0) < machines:
        raise ConfigError(
            f"--machine-rank is {args.machine_rank}, but must be in [0, {machines}), the machines "
            "of --num-machines"
        )
    url = args.dist_url or "auto"
    if machines > 1 and url == "auto":
        raise ConfigError(
            f"--num-machines is {machines}: give --dist-url tcp://HOST:PORT on all of them, with "
            "the first machine and a free port of it"
        )
    return per_machine, machines, url


@contextlib.contextmanager
def _joined(place: Place, timeout: timedelta, *, on_cpu: bool = False) -> Iterator[None]:
    """Be a process of the job, as long as the block lasts."""
    gpu = None if on_cpu else _gpu_of(place, torch.cuda.device_count())
    if gpu is not None:
        torch.cuda.set_device(gpu)
    dist.init_process_group(
        "gloo" if gpu is None else "nccl",
        init_method=place.url,
        rank=place.rank,
        world_size=place.world_size,
        timeout=timeout,
    )
    comm.create_local_process_group(place.local_size)
    comm.synchronize()
    yield
    dist.destroy_process_group()


def _gpu_of(place: Place, num_visible: int) -> int | None:
    """The GPU of a process among those that it sees; None where there is none."""
    if num_visible == 0:
        return None
    # SLURM may show each process its own alone.
    if num_visible < place.local_size and (num_visible > 1 or place.starter != SLURM):
        raise ConfigError(
            f"{place.starter} started {place.local_size} processes on this machine, but torch "
            f"finds {num_visible} GPUs: start one process for each"
        )
    return place.local_rank % num_visible


def _start_on_cpu(
    main: Main,
    args: argparse.Namespace,
    num: int,
    machines: int,
    url: str,
    timeout: timedelta,
) -> None:
    """Start this machine's processes and wait for them."""
    with tempfile.TemporaryDirectory(prefix="solo_d2") as folder:
        url = f"file://{folder}/processes" if url == "auto" else url
        first = num * (args.machine_rank or 0)
        context = multiprocessing.start_processes(
            _cpu_process,
            (main, args, first, num, machines, url, timeout),
            nprocs=num,
            join=False,
        )
        try:
            while not context.join():
                pass
        except ProcessRaisedException:
            # What a process raises because another one is gone tells less than how that ended.
            for index, process in enumerate(context.processes):
                if process.exitcode not in (None, 0, 1, -signal.SIGTERM, TERMINATED):
                    raise _ended(index, process.exitcode) from None
            raise


def _cpu_process(
    local_rank: int,
    main: Main,
    args: argparse.Namespace,
    first: int,
    num: int,
    machines: int,
    url: str,
    timeout: timedelta,
) -> None:
    """What each of the processes does; they share the cores."""
    torch.set_num_threads(max(1, torch.get_num_threads() // num))
    place = Place("--num-processes", first + local_rank, num * machines, local_rank, num, url)
    with _joined(place, timeout, on_cpu=True):
        run_process(main, args)


@contextlib.contextmanager
def _errors_of_processes() -> Iterator[None]:
    """Raise what was raised in another process as what it was there."""
    try:
        yield
    except ProcessExitedException as error:
        raise _ended(error.error_index, error.exit_code) from None
    except ProcessRaisedException as error:
        name, _, text = last_error(error.msg).partition(": ")
        for kind in (BadNumbersError, ConfigError, DatasetError):
            if name == f"{kind.__module__}.{kind.__name__}":
                raise kind(text) from None
        system = re.fullmatch(r"\[Errno (\d+)\] ([^:\n]*)(?:: '(.*)')?", text)
        if system and not in_user_code(error.msg):
            raise OSError(int(system[1]), system[2], system[3]) from None
        raise


def _ended(index: int, exit_code: int) -> JobError:
    """The error for a process that ended before its time; a negative code is a signal's number."""
    return JobError(
        f"Process {index} of this machine was ended {cause_of_end(exit_code)}, and the job with "
        "it. The same command with --resume goes on from the last checkpoint"
    )
