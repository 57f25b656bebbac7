"""Freed memory that a process keeps."""

import platform
import subprocess
import sys

import pytest

from solo_d2.utils.allocator import keep_freed_memory

SCRIPT = """
import resource
import threading

import torch

from solo_d2.utils.allocator import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

def run():
    torch.ones(3 << 24)  # 192 MiB

torch.ones(1)
before = resident()
thread = threading.Thread(target=run)
{}
thread.start()
thread.join()
print(resident() - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


@glibc
@pytest.mark.parametrize("keeps", [False, True])
def test_freed_tensors_stay_with_the_process(keeps):
    call = "assert keep_freed_memory()" if keeps else ""
    environment = {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", SCRIPT.format(call)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 150) is keeps


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=128")],
)
def test_options_of_the_user_stay(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()
