"""Image files: finding them, and names for their overlays."""

from pathlib import Path

import pytest

from solo_d2.api import images
from tests.pictures import save


def test_files_folders_and_globs_each_file_once(tmp_path):
    first, second = save(tmp_path / "b.png"), save(tmp_path / "a.JPG")
    odd = save(tmp_path / "x[1].png")
    (tmp_path / "note.txt").write_text("no image")
    (tmp_path / "._a.JPG").write_text("metadata of macOS")
    (tmp_path / "folder.png").mkdir()
    found, missing = images.expand_inputs(
        [str(first), str(tmp_path), str(tmp_path / "*.png"), str(odd), "nowhere/*.png"]
    )
    assert found == [first, second, odd]
    assert missing == ["nowhere/*.png"]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (
            ("x/a.jpg", "y/a.jpg", "y/A.JPG", "z/y/a.jpg", "x/a.gif", "x/b.png"),
            ["x_a.jpg", "y_a.jpg", "y_A_2.JPG", "y_a_3.jpg", "a.gif.png", "b.png"],
        ),
        (("x/a.png", "y/a.png", "x_a.png"), ["x_a_2.png", "y_a.png", "x_a.png"]),
    ],
)
def test_names_of_different_folders_do_not_clash(files, names):
    assert images.output_names([Path(file) for file in files]) == names
