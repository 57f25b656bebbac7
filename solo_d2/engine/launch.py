"""Processes of a job, started by torchrun or by Detectron2's `launch`.

Processes with GPUs exchange gradients by NCCL, others by gloo.
"""

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import create_ddp_model
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException

from solo_d2.utils.commands import run_command
from solo_d2.utils.errors import ConfigError, first_line

Main = Callable[[argparse.Namespace], Any]

# Longer than any task of a single process while the others wait, such as computing AP.
TIMEOUT_MINUTES = 30.0
_OPTIONS = ("num_gpus", "num_processes", "num_machines", "machine_rank", "dist_url")


class JobError(RuntimeError):
    """A process of the job failed, which ends the job; the message says which."""


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `launch` to Detectron2's parser; the default of each is None."""
    group = parser.add_argument_group("processes (under torchrun only --dist-timeout)")
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
    parser.set_defaults(**dict.fromkeys(_OPTIONS))


def launch(main: Main, args: argparse.Namespace) -> Any:
    """Run a function in every process of the job described by arguments and environment.

    Args:
        main: takes the arguments; defined in a module, which new processes import.
        args: arguments including those of `add_launch_arguments`.

    Returns:
        The result of `main` if this process calls it; None if it starts others.

    Raises:
        ConfigError: options contradict each other, the environment or the machine.
        JobError: a process was killed, or failed and printed a message.
        ProcessRaisedException: `main` raised; with the traceback of the process.
    """
    under_torchrun = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    _check_options(args, under_torchrun)
    timeout = timedelta(minutes=args.dist_timeout)
    if under_torchrun:
        return _join(main, args, timeout)
    count, machines = args.num_processes or args.num_gpus or 1, args.num_machines or 1
    if count * machines == 1:
        return main(args)
    place = args.machine_rank or 0, args.dist_url or "auto", (main, args, count), timeout
    with _without_gpus() if args.num_processes else contextlib.nullcontext():
        try:
            detectron2_launch(_process, count, machines, *place)
        except ProcessExitedException as error:
            if error.exit_code < 0:  # minus the number of a signal
                hint = "run the same command with --resume to continue from the last checkpoint"
            else:  # the process has printed the reason
                hint = "its message is above"
            raise JobError(f"{error}; {hint}") from None


def _check_options(args: argparse.Namespace, under_torchrun: bool) -> None:
    given = [name for name in _OPTIONS if getattr(args, name) is not None]
    if under_torchrun and given:
        raise ConfigError(f"torchrun sets --{given[0].replace('_', '-')}: remove it")
    if not under_torchrun and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise ConfigError(
            "SLURM_STEP_NUM_TASKS is above 1: start one torchrun per machine with srun instead "
            "(docs/distributed.md)"
        )
    if args.num_gpus is not None and args.num_processes is not None:
        raise ConfigError("--num-gpus is for GPUs, --num-processes for the CPU: use one of them")
    for name, least in (("num_processes", 1), ("num_gpus", 0), ("num_machines", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(
                f"--{name.replace('_', '-')} is {value}, but must be at least {least}"
            )
    if not 0 < args.dist_timeout < math.inf:
        raise ConfigError(f"--dist-timeout is {args.dist_timeout}, but must be above 0 minutes")
    if args.machine_rank and args.machine_rank >= (args.num_machines or 1):
        raise ConfigError(
            f"--machine-rank is {args.machine_rank}, but must be below --num-machines "
            f"({args.num_machines or 1})"
        )
    if (args.num_gpus or 1) > max(1, torch.cuda.device_count()):
        raise ConfigError(
            f"--num-gpus is {args.num_gpus}, but torch finds {torch.cuda.device_count()} GPUs. For "
            "processes on the CPU use --num-processes"
        )


@contextlib.contextmanager
def _without_gpus() -> Iterator[None]:
    """Hide GPUs from processes that are started in the block, so that they use gloo."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _join(main: Main, args: argparse.Namespace, timeout: timedelta) -> Any:
    """Run as a process of torchrun's job."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timeout)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    comm.synchronize()
    result = main(args)
    dist.destroy_process_group()
    return result


def _process(main: Main, args: argparse.Namespace, count: int) -> None:
    """Run as a process started by `launch`; on the CPU, processes share the cores."""
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    failed = run_command("", lambda: main(args), failed=1)
    if failed:
        sys.exit(failed)
    dist.destroy_process_group()


def distribute(model: nn.Module) -> nn.Module:
    """Wrap a model for distributed training; buffers are not exchanged."""
    # Detectron2's default device is the GPU with the local rank, even without GPUs.
    device = next(model.parameters()).device
    devices = [device.index] if device.type == "cuda" else None
    return create_ddp_model(model, broadcast_buffers=False, device_ids=devices)


def check_device(device: str) -> None:
    """Raise a ConfigError if MODEL.DEVICE is not available, or not for the processes."""
    index, count = torch.device(device).index, torch.cuda.device_count()
    if device.startswith("cuda") and index is not None and index >= count:
        raise ConfigError(f"MODEL.DEVICE is {device}, but torch finds {count} GPUs")
    if not device.startswith(("cpu", "cuda")):
        try:
            torch.zeros(1, device=device).tolist()
        except (RuntimeError, AssertionError, ImportError) as error:
            reason = first_line(error)
            raise ConfigError(f"MODEL.DEVICE is {device}, but cannot be used: {reason}") from error
    if comm.get_world_size() == 1:
        return
    backend = dist.get_backend()
    if device.startswith("cuda") and backend != "nccl":
        raise ConfigError(
            f"MODEL.DEVICE is {device}, but the processes have no GPUs: set MODEL.DEVICE cpu, or "
            "start them with --num-gpus"
        )
    if device == "cpu" and backend == "nccl":
        raise ConfigError(
            "MODEL.DEVICE is cpu, but the processes have GPUs. Start them with --num-processes, or "
            "with torchrun and an empty CUDA_VISIBLE_DEVICES"
        )
