"""Work that is killed, told to stop or given no room, at every moment of its writing.

The work runs in a child process. An audit hook of Python counts what it does to its folder (files
opened for writing, renamed, removed; folders made) and sends the process a signal just before the
N-th of these; N goes from 1 until the work ends by itself. The kernel does the rest: a limit to the
size of files ends the process in the midst of writing a file, also in native code (SIGXFSZ), or
makes writing fail as a full disk does (EFBIG).
"""

import itertools
import json
import multiprocessing.connection
import os
import resource
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import torch
import yaml
from PIL import Image

# Names that no run leaves but by a kill, and those that the next run needs or finds no harm in.
LEFT = (".unfinished-", ".tmp-", ".lock")
# Grow line by line, so a kill cuts them off; who reads them skips what is no line.
LOGS = ("log.txt", "metrics.json", "events.out.tfevents")

# Seconds without output after which a child is taken to hang.
_PATIENCE = 300
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.reliability.works"])
_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Ending(NamedTuple):
    """The exit code of a run (of a killed one, less than 0), and both streams of its output."""

    code: int
    out: str


def run(work, folder, *, signal_at=None, sent=signal.SIGKILL, room=None, kill_beyond=False):
    """Do a work in a process of its own.

    Args:
        work: name in `tests.reliability.works`.
        folder: its folder; its results are in folder/out.
        signal_at: the moment (from 1) at which it gets a signal; None: none does.
        sent: the signal.
        room: bytes that a file may have at most; None: any.
        kill_beyond: whether the process is killed if a file would have more.
    """
    ours, theirs = _context.Pipe(duplex=False)
    arguments = (theirs, work, str(folder), signal_at, int(sent), room, kill_beyond)
    process = _context.Process(target=_child, args=arguments)
    process.start()
    theirs.close()
    printed = []
    while multiprocessing.connection.wait([ours], timeout=_PATIENCE):
        printed.append(os.read(ours.fileno(), 2**16))
        if not printed[-1]:
            break
    else:
        process.kill()
        raise AssertionError(f"{work} hangs: {b''.join(printed)}")
    process.join()
    return Ending(process.exitcode, b"".join(printed).decode(errors="replace"))


def run_until_whole(work, folder, *contents, sent=signal.SIGKILL):
    """Yield how runs end of which each gets the signal a moment later, until one is not hit.

    After each, every file is whole (see `assert_whole`).
    """
    for moment in itertools.count(1):
        ending = run(work, folder, signal_at=moment, sent=sent)
        assert_whole(folder / "out", *contents)
        if ending.code == 0:
            return
        yield ending


def _child(printed, work, folder, signal_at, sent, room, kill_beyond):
    from tests.reliability import works

    for stream in (1, 2):
        os.dup2(printed.fileno(), stream)
    printed.close()
    torch.set_num_threads(1)
    if signal_at is not None:
        _signal_at(signal_at, sent, os.path.join(folder, "out"))
    if room is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill_beyond else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    sys.exit(works.WORKS[work](Path(folder)))


def _signal_at(moment, sent, watched):
    moments = itertools.count(1)

    def hook(event, arguments):
        writes = event in _EVENTS
        if event == "open":
            _, mode, flags = arguments
            writes = set(mode or "") & set("wax+") or (flags or 0) & _WRITE
        if not writes or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        if os.fsdecode(arguments[0]).startswith(watched) and next(moments) == moment:
            os.kill(os.getpid(), sent)

    sys.addaudithook(hook)


def visible(folder):
    """Content of the files that a user sees in a folder, by name; without logs.

    Where they name the folder above, as configs do, they have another text for it.
    """
    above = os.fsencode(folder.parent)
    names = {path: path.relative_to(folder) for path in sorted(folder.rglob("*"))}
    return {
        str(name): path.read_bytes().replace(above, b"ABOVE")
        for path, name in names.items()
        if path.is_file()
        and not any(part.startswith(".") for part in name.parts)
        and not path.name.startswith(LOGS)
    }


def hidden(folder, *, locks=True):
    """Names of what a user does not see there."""
    names = [path.name for path in folder.rglob("*") if path.name.startswith(".")]
    return [name for name in names if locks or ".lock" not in name]


def assert_whole(folder, *contents):
    """Every visible file has one of the contents that it may have, or can be read."""
    for name, content in visible(folder).items():
        if all(content != known.get(name) for known in contents):
            READERS[Path(name).suffix](folder / name)
    assert [name for name in hidden(folder) if not any(mark in name for mark in LEFT)] == []


def _read_image(file):
    with Image.open(file) as image:
        image.load()


def _read_video(file):
    capture = cv2.VideoCapture(str(file))
    frames = 0
    while capture.read()[0]:
        frames += 1
    assert frames == capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0


def _read_onnx(file):
    import onnx

    onnx.checker.check_model(str(file))


def _read_last(file):
    assert (file.parent / file.read_text()).is_file()


READERS = {
    ".json": lambda file: json.loads(file.read_text()),
    ".yaml": lambda file: yaml.safe_load(file.read_text())["MODEL"],
    ".pth": lambda file: torch.load(file, weights_only=False),  # also metrics
    **dict.fromkeys((".jpg", ".png"), _read_image),
    **dict.fromkeys((".mp4", ".avi"), _read_video),
    ".onnx": _read_onnx,
    "": _read_last,
}
