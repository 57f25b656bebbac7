"""Full disks and places that cannot be written: one line, nothing half; what was there stays."""

import errno
import os
import re
import resource
import shutil
import subprocess
import sys

import pytest
import torch

from solo_d2.utils import files
from solo_d2.utils.commands import FAILED, run_command
from solo_d2.utils.files import save_json
from tests.reliability import killing
from tests.reliability.test_kill import EVERYTHING, LONG, QUICK, SIZES, finish, long

pytestmark = pytest.mark.detectron2


REASONS = (
    "can't be written",
    "is not writable",
    "File too large",
    "No space left",
    "Not a directory",
    "Read-only",
    "File exists",
    "full",
)


def assert_one_line(ending, place):
    """It failed, and its last line says where and why."""
    assert ending.code in (1, FAILED), ending.out
    assert "Traceback" not in ending.out, ending.out
    assert "Logging error" not in ending.out, ending.out
    last = ending.out.strip().splitlines()[-1]
    assert str(place) in last, ending.out
    assert any(reason in last for reason in REASONS), ending.out


@pytest.mark.parametrize("work", EVERYTHING)
def test_files_may_not_grow(work, folder_of):
    """A limit to the size of files, which writing meets as it meets a full disk."""
    folder = folder_of(work)
    failed = 0
    for size in SIZES:
        ending = killing.run(work, folder, room=size)
        if ending.code != 0:
            failed += 1
            assert_one_line(ending, folder / "out")
        killing.assert_whole(folder / "out")
        assert killing.hidden(folder / "out", locks=False) == []
    assert failed > 1
    finish(work, folder)


@pytest.mark.parametrize("work", EVERYTHING)
def test_a_file_stands_where_the_folder_should_be(work, folder_of):
    folder = folder_of(work)
    (folder / "out").write_text("mine")
    assert_one_line(killing.run(work, folder), folder / "out")
    assert (folder / "out").read_text() == "mine"


@pytest.fixture
def mount():
    """Mounts a file system in memory in the place of the last; skips where that is not allowed."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    mounted = []

    def make(place, options):
        if mounted:
            subprocess.run(["umount", mounted.pop()], check=True)
        place.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"nothing can be mounted: {done.stderr}")
        mounted.append(place)

    yield make
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("work", ["one_file", *long(*QUICK[1:], *LONG)])
def test_disks_that_are_full_or_read_only(work, folder_of, mount):
    folder = folder_of(work)
    mount(folder / "out", "ro")
    assert_one_line(killing.run(work, folder), folder / "out")
    mount(folder / "out", "size=4k")
    (folder / "out" / "mine").write_bytes(bytes(4096))  # all that there is
    assert_one_line(killing.run(work, folder), folder / "out")
    assert killing.hidden(folder / "out", locks=False) == []


@pytest.mark.reliability
def test_the_last_good_checkpoint_survives_a_full_disk(folder_of, mount):
    folder = folder_of("training")
    out = folder / "out"
    mount(out, "size=1g")
    assert killing.run("training", folder).code == 0
    size = (out / "model_0000000.pth").stat().st_size
    mount(out, f"size={size * 5 // 2}")  # for two of three
    ending = killing.run("training", folder)
    assert_one_line(ending, out / "model_0000002.pth")
    last = out / (out / "last_checkpoint").read_text()
    assert last.name == "model_0000001.pth"
    assert torch.load(last, weights_only=True)["iteration"] == 1
    subprocess.run(["mount", "-o", "remount,size=1g", str(out)], check=True)
    assert "model_final.pth" in finish("training", folder)


@pytest.mark.reliability
def test_a_log_without_room_is_not_told_of_again(folder_of):
    """Detectron2 closes its log when the interpreter ends, which fails once more."""
    folder = folder_of("training")
    command = [sys.executable, "train_net.py", "--config-file", f"{folder}/in/config.yaml"]
    for room in range(56_000, 66_000, 2_000):
        done = subprocess.run(
            [*command, "OUTPUT_DIR", f"{folder}/out{room}", "DATALOADER.NUM_WORKERS", "0"],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),  # noqa: B023
        )
        assert "Exception ignored" not in done.stderr
        assert_one_line(killing.Ending(done.returncode, done.stderr), f"{folder}/out{room}")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_errors_of_a_full_disk_name_the_file(tmp_path, capsys, number):
    """They have no name of their own."""
    file = tmp_path / "a.json"
    file.write_text("old")

    def write():
        with files.whole_file(file) as temporary:
            temporary.write_text("ne")
            raise OSError(number, os.strerror(number))

    assert run_command("work", write) == FAILED
    assert re.fullmatch(
        rf"work: {re.escape(str(file))}: {os.strerror(number)}\. .*\n", capsys.readouterr().err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert file.read_text() == "old"


def test_errors_of_torch_and_of_the_folder(tmp_path):
    behind = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for error, kind, message in (
        (RuntimeError("[enforce fail at inline_container.cc:672]"), OSError, r"No space.*a\.pth"),
        (RuntimeError("of another kind"), RuntimeError, "of another kind"),
        (FileNotFoundError(errno.ENOENT, "gone", "elsewhere"), FileNotFoundError, "elsewhere"),
    ):
        with pytest.raises(kind, match=message), files.naming(tmp_path / "a.pth"):
            raise error from (behind if kind is OSError else None)


def test_devices_and_folders_are_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with files.whole_file(pipe) as place:
        place.write_text("{}")
    assert os.read(reader, 10) == b"{}"
    assert pipe.is_fifo()
    os.close(reader)
    with pytest.raises(IsADirectoryError), files.whole_file(tmp_path):
        pass


def test_new_files_can_be_read_by_others(tmp_path):
    """As the user's mask says, like any other file."""
    before = os.umask(0o022)
    try:
        save_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644
