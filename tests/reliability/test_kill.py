"""Commands that are killed or told to stop: files are old, new or absent; the next run works."""

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from solo_d2.data.whole_folder import only_writer, whole_folder
from solo_d2.utils import files
from solo_d2.utils.commands import TERMINATED, run_command
from tests.reliability import killing

# Of a run whose content does not follow from its inputs alone to the byte.
WITH_TIMES = {"evaluation", "training"}
QUICK = ["one_file", "panoptic", "conversion"]
LONG = ["labels", "shapes", "stills", "video", "training", "evaluation", "export"]


def long(*works):
    return [pytest.param(work, marks=pytest.mark.reliability) for work in works]


EVERYTHING = [*QUICK, *long(*LONG)]
# Sizes of files beyond which the kernel kills.
SIZES = (0, 1, 100, 2_000, 20_000, 200_000)


def finish(work, folder):
    """Do the work to its end; what the user then sees."""
    ending = killing.run(work, folder)
    assert ending.code == 0, ending.out
    return killing.visible(folder / "out")


@pytest.fixture(scope="session")
def results(folder_of):
    """Gives the results of a work that nothing disturbs, for each variant."""
    return functools.cache(lambda work, variant=0: finish(work, folder_of(work, variant)))


def assert_results(work, found, expected):
    assert found.keys() == expected.keys()
    if work not in WITH_TIMES:
        assert found == expected


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
@pytest.mark.parametrize("work", EVERYTHING)
def test_signals_at_every_moment(work, sent, folder_of, results):
    """One run after the other ends a moment later than the last; then one goes to the end."""
    new, folder, number = results(work), folder_of(work), 0
    for ending in killing.run_until_whole(work, folder, new, sent=sent):
        number += 1
        assert ending.code == (-sent if sent == signal.SIGKILL else TERMINATED), ending.out
        if sent == signal.SIGTERM:
            assert ending.out.rstrip().endswith(": terminated"), ending.out
            assert killing.hidden(folder / "out", locks=False) == []
    assert number > 1
    assert_results(work, finish(work, folder), new)


@pytest.mark.parametrize(
    "work", ["one_file", "conversion", *long("labels", "panoptic", "shapes", "stills")]
)
def test_what_is_there_stays_until_the_new_is_whole(work, folder_of, results):
    old, new, folder = results(work), results(work, 1), folder_of(work)
    finish(work, folder)
    (folder / "variant").write_text("1")
    assert all(ending.code for ending in killing.run_until_whole(work, folder, old, new))
    assert_results(work, finish(work, folder), new)


@pytest.mark.parametrize("work", EVERYTHING)
def test_killed_in_the_midst_of_a_file(work, folder_of, results):
    """The kernel ends the process when a file, of Python or of native code, exceeds a size."""
    new, folder, codes = results(work), folder_of(work), []
    for size in SIZES:
        codes.append(killing.run(work, folder, room=size, kill_beyond=True).code)
        killing.assert_whole(folder / "out", new)
    assert set(codes) <= {0, -signal.SIGXFSZ}
    assert sum(code != 0 for code in codes) > 1
    assert_results(work, finish(work, folder), new)


def write_beside(leftover):
    files.sweep.cache_clear()
    files.save_text(leftover.parent / "a.txt", "whole")


def begin(file, begun):
    with files.whole_file(file) as temporary:
        temporary.write_text("half")
        begun.put(temporary)
        time.sleep(600)


def test_leftovers_of_a_killed_process_go_and_those_of_a_live_one_stay(tmp_path):
    context = multiprocessing.get_context("forkserver")
    begun = context.SimpleQueue()
    writer = context.Process(target=begin, args=(tmp_path / "b.json", begun))
    writer.start()
    unfinished = begun.get()
    long_ago = time.time() - 100 * 3600
    os.utime(unfinished, (long_ago, long_ago))
    write_beside(unfinished)
    assert unfinished.read_text() == "half"
    writer.kill()
    writer.join()
    write_beside(unfinished)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("owner", ["0badc0de-1-", "model_"])
def test_leftovers_of_other_machines_go_after_a_day(tmp_path, owner):
    old, fresh = (tmp_path / f"{files.UNFINISHED}{owner}{name}.json" for name in ("old", "fresh"))
    for leftover in (old, fresh):
        leftover.write_text("half")
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    write_beside(old)
    assert sorted(path.name for path in tmp_path.iterdir()) == [fresh.name, "a.txt"]


def test_a_folder_that_was_taken_away_comes_back(tmp_path):
    """Killed between the two renames, a writer leaves the old folder beside its place."""
    root = tmp_path / "data"
    taken = tmp_path / ".data.tmp-abc" / "old"
    taken.mkdir(parents=True)
    (taken / "a.txt").write_text("old")
    with pytest.raises(OSError, match="full"), only_writer(root), whole_folder(root):
        raise OSError("full")
    assert (root / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".data.tmp")] == []


def test_terminated_commands_end_what_they_started_and_restore_settings(tmp_path, capsys):
    def settings():
        signals = map(signal.getsignal, (signal.SIGTERM, signal.SIGCHLD))
        return sys.unraisablehook, logging.raiseExceptions, *signals

    before, during, started = settings(), [], []

    def work():
        context = multiprocessing.get_context("forkserver")
        started.append(context.Process(target=time.sleep, args=(600,)))
        started[0].start()
        during.append(settings())
        try:
            with files.whole_file(tmp_path / "a.json") as file:
                file.write_text("[")
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
        finally:
            during.append(settings())

    assert run_command("work", work) == TERMINATED == 128 + signal.SIGTERM
    started[0].join(60)
    assert started[0].exitcode is not None
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == "work: terminated\n"
    assert settings() == before
    for hook, raises, _, child in during:
        assert (hook, raises, child) == (*before[:2], before[3])


def test_what_ends_because_of_sigterm_is_no_failure(capsys):
    """As workers of torch's loader, which are told too; torch raises that they were killed."""

    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")

    assert run_command("work", work) == TERMINATED
    assert capsys.readouterr().err == "work: terminated\n"


def alive(group):
    """Processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(stat.parent.name))
    return found


PROCESSES = {
    "workers": ["DATALOADER.NUM_WORKERS", "2"],
    "processes": ["DATALOADER.NUM_WORKERS", "1", "MODEL.DEVICE", "cpu"],
}


@pytest.mark.reliability
@pytest.mark.parametrize("whom", ["command", "group"])
@pytest.mark.parametrize("kind", PROCESSES)
def test_sigterm_ends_a_training_with_all_its_processes(folder_of, kind, whom):
    """As Kubernetes sends it, to the command, and as SLURM does, to all processes."""
    folder = folder_of("training")
    out, printed = folder / "out", folder / "printed.txt"
    several = ["--num-processes", "2"] if kind == "processes" else []
    command = [sys.executable, "train_net.py", "--config-file", f"{folder}/in/config.yaml"]
    command += [*several, "--resume", "OUTPUT_DIR", str(out), "SOLVER.CHECKPOINT_PERIOD", "3"]
    command += [*PROCESSES[kind], "TEST.EVAL_PERIOD", "0", "SOLVER.MAX_ITER"]
    with open(printed, "w") as stream:
        training = subprocess.Popen(
            [*command, "100000"], stdout=stream, stderr=stream, start_new_session=True
        )
    while not (out / "last_checkpoint").exists():
        assert training.poll() is None, printed.read_text()
        time.sleep(0.05)
    (os.kill if whom == "command" else os.killpg)(training.pid, signal.SIGTERM)
    assert training.wait(120) == TERMINATED, printed.read_text()
    assert "SIGTERM: terminated" in printed.read_text()
    deadline = time.monotonic() + 20
    while alive(training.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(training.pid) == []
    killing.assert_whole(out)
    assert killing.hidden(out, locks=False) == []
    last = torch.load(out / (out / "last_checkpoint").read_text(), weights_only=True)
    end = str(last["iteration"] + 2)
    done = subprocess.run([*command, end], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "model_final.pth").is_file()


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(files.os, "fsync", lambda _: events.append("on disk"))
    monkeypatch.setattr(files.Path, "replace", lambda *_: events.append("named"))
    files.save_text(tmp_path / "a.json", "{}")
    assert events == ["on disk", "named"]
