"""Work that is killed, told to stop or given no room, at every moment of its writing.

The work runs in a child process. An audit hook of Python counts what it does to its folder (files
opened for writing, renamed, removed; folders made) and sends the process a signal just before the
N-th of these; N goes from 1 until the work ends by itself. The kernel does the rest: a limit to the
size of files ends the process in the midst of writing a file, also in native code (SIGXFSZ), or
makes writing fail as a full disk does (EFBIG).
"""

import json
import multiprocessing.connection
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
import yaml
from PIL import Image

# Names that no run leaves but by a kill, and those that the next run needs or finds no harm in.
LEFT = (".unfinished-", ".tmp-", ".lock")
# Grow line by line, so a kill cuts them off; who reads them skips what is no line.
LOGS = ("log.txt", "metrics.json", "events.out.tfevents")

# Seconds without a word after which a child is taken to hang.
_PATIENCE = 300
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.reliability.works"])
_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        code: exit code; of one that was killed, less than 0.
        out: what it printed, both streams.
    """

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
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event == "open":
            path, mode, flags = arguments
            if not (set(mode or "") & set("wax+") or (flags or 0) & _WRITE):
                return
        elif event in _EVENTS:
            path = arguments[0]
        else:
            return
        if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(watched):
            count += 1
            if count == moment:
                os.kill(os.getpid(), sent)

    sys.addaudithook(hook)


def visible(folder):
    """Content of the files that a user sees in a folder, by name; without logs.

    Where they name the folder above, as configs do, they have another text for it.
    """
    above = os.fsencode(folder.parent)
    return {
        str(path.relative_to(folder)): path.read_bytes().replace(above, b"ABOVE")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.name.startswith(LOGS)
    }


def hidden(folder):
    """Names of what a user does not see there."""
    return [path.name for path in folder.rglob("*") if path.name.startswith(".")]


def assert_whole(folder, *contents):
    """Every visible file has one of the contents that it may have, or can be read."""
    for name, content in visible(folder).items():
        if all(content != known.get(name) for known in contents):
            READERS[Path(name).suffix](folder / name)
    strange = [name for name in hidden(folder) if not any(mark in name for mark in LEFT)]
    assert not strange


def _read_image(file):
    with Image.open(file) as image:
        image.load()


def _read_video(file):
    capture = cv2.VideoCapture(str(file))
    assert capture.isOpened()
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
    ".pth": lambda file: torch.load(file, weights_only=False),  # also figures
    ".jpg": _read_image,
    ".png": _read_image,
    ".onnx": _read_onnx,
    ".mp4": _read_video,
    ".avi": _read_video,
    "": _read_last,
}
