"""Image files: finding them, reading any kind of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from solo_d2.api import images
from tests.api.models import bad_files, save

pytestmark = pytest.mark.detectron2

EXIF_ORIENTATION = 274


def test_files_folders_and_globs_each_file_once(tmp_path):
    first, second = save(tmp_path / "b.png"), save(tmp_path / "a.JPG")
    odd = save(tmp_path / "x[1].png")
    (tmp_path / "note.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    found, missing = images.expand_inputs(
        [str(first), str(tmp_path), str(tmp_path / "*.png"), str(odd), "nowhere/*.png"]
    )
    assert found == [first, second, odd]
    assert missing == ["nowhere/*.png"]


def test_names_of_different_folders_do_not_clash():
    files = [Path(p) for p in ("x/a.jpg", "y/a.jpg", "y/A.JPG", "z/y/a.jpg", "x/a.gif", "x/b.png")]
    names = images.output_names(files)
    assert names == ["x_a.jpg", "y_a.jpg", "y_A_2.JPG", "y_a_3.jpg", "a.gif.png", "b.png"]
    assert len({name.casefold() for name in names}) == len(names)


def test_a_prefixed_name_does_not_hit_a_plain_one():
    assert images.output_names([Path("x/a.png"), Path("y/a.png"), Path("x_a.png")]) == [
        "x_a_2.png",
        "y_a.png",
        "x_a.png",
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_exif_orientation_gives_the_upright_image(tmp_path, orientation, extension):
    undo = [
        lambda a: a,
        lambda a: a[:, ::-1],
        lambda a: a[::-1, ::-1],
        lambda a: a[::-1],
        lambda a: a.transpose(1, 0, 2),
        lambda a: np.rot90(a, 1),
        lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        lambda a: np.rot90(a, -1),
    ][orientation - 1]
    upright = np.zeros((32, 48, 3), dtype=np.uint8)
    upright[:16, :16, 0] = 255  # red at the top left, green at the top right
    upright[:16, 32:, 1] = 255
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    file = save(tmp_path / f"a.{extension}", np.ascontiguousarray(undo(upright)), exif=exif)
    read = images.read_image(file)
    assert read.shape == upright.shape
    assert np.abs(read.astype(int) - upright)[4:12, 4:44].mean() < 4


def test_unknown_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 9
    assert images.read_image(save(tmp_path / "a.jpg", exif=exif)).shape == (48, 64, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_modes_become_rgb(tmp_path, mode):
    grey = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None], 48, axis=0)
    image = Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2)).convert(mode)
    extension = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    image.save(tmp_path / f"a.{extension}")
    read = images.read_image(tmp_path / f"a.{extension}")
    assert read.shape == (48, 64, 3)
    assert read.dtype == np.uint8
    assert 110 < read.mean() < 145


@pytest.mark.parametrize("depth", [10, 12, 16])
def test_16_bit_grey_looks_as_its_8_bit_version(tmp_path, depth):
    values = np.linspace(0, 2**depth - 1, 64)[None].repeat(48, axis=0)
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "a.png")
    read = images.read_image(tmp_path / "a.png")
    expected = np.linspace(0, 255, 64)[None, :, None]
    assert np.abs(read - expected).max() <= 1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-3, 1e4)])
def test_float_image_is_neither_black_nor_white(tmp_path, low, high):
    values = np.linspace(low, high, 64, dtype=np.float32)[None].repeat(48, axis=0)
    Image.fromarray(values).save(tmp_path / "a.tif")
    read = images.read_image(tmp_path / "a.tif")
    assert np.abs(read - np.linspace(0, 255, 64)[None, :, None]).max() <= 1


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_files_are_refused_with_name_and_reason(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(images.ImageError, match=reason) as error:
            images.read_image(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(images.ImageError, match="a_file_that_is_not_there"):
        images.read_image(tmp_path / "a_file_that_is_not_there.png")
