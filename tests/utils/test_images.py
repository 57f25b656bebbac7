"""The reader of all images: every kind is read as meant, and what is damaged is refused."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from solo_d2.utils import images
from tests.pictures import bad_pictures, good_pictures, lay_down, png_of_size, save, scene

EXIF_ORIENTATION = 274


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_of_png_gives_the_upright_image(tmp_path, orientation):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    file = save(tmp_path / "a.png", lay_down(scene(), orientation), exif=exif)
    np.testing.assert_array_equal(images.read_image(file), scene())


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [
        *((0, 2**depth - 1, np.uint16) for depth in (10, 12, 16)),
        *((low, high, np.float32) for low, high in ((0, 1), (0, 255), (-3, 1e4))),
    ],
)
def test_values_of_other_ranges_look_as_their_8_bit_version(tmp_path, low, high, kind):
    values = np.linspace(low, high, 64)[None].repeat(48, axis=0).astype(kind)
    file = tmp_path / ("a.png" if kind == np.uint16 else "a.tif")
    Image.fromarray(values).save(file)
    expected = np.linspace(0, 255, 64)[None, :, None]
    assert np.abs(images.read_image(file) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["1", "YCbCr"])
def test_modes_become_rgb(tmp_path, mode):
    file = tmp_path / ("a.png" if mode == "1" else "a.jpg")
    Image.fromarray(scene()).convert(mode).save(file)
    read = images.read_image(file)
    assert (read.shape, read.dtype) == ((48, 64, 3), np.uint8)
    assert abs(read.mean() - scene().mean()) < 25


def test_every_kind_shows_the_scene(tmp_path):
    for name, what in good_pictures(tmp_path).items():
        read = images.read_image(tmp_path / name)
        assert read.dtype == np.uint8, name
        if "size" in what:
            continue
        expected = scene().astype(int)
        if "grey" in what:
            expected = np.asarray(Image.fromarray(scene()).convert("L"))[:, :, None].astype(int)
        assert read.shape == (48, 64, 3), name
        assert np.abs(read - expected).mean() < 6, name


@pytest.mark.parametrize("size", [(1, 1), (40, 8000), (8000, 40), (3000, 4000)])
def test_sizes_from_one_pixel_to_twelve_million(tmp_path, size):
    Image.new("RGB", size[::-1], (9, 80, 200)).save(tmp_path / "a.png", compress_level=1)
    read = images.read_image(tmp_path / "a.png")
    assert read.shape == (*size, 3)
    assert (read[-1, -1] == (9, 80, 200)).all()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_files_are_refused_with_name_and_reason(tmp_path):
    bad = bad_pictures(tmp_path)
    assert len(bad) == 17
    for name, reason in bad.items():
        with pytest.raises(images.ImageError, match=reason) as error:
            images.read_image(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("error")
def test_the_limit_is_the_reason_also_where_warnings_are_errors(tmp_path, monkeypatch):
    # Other tests may have raised the limit of the process.
    monkeypatch.setattr(images.Image, "MAX_IMAGE_PIXELS", images.MAX_PIXELS)
    (tmp_path / "a.png").write_bytes(png_of_size(10_000, 10_000))  # Pillow warns
    with pytest.raises(images.ImageError, match="more pixels than the limit of 80000000"):
        images.read_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pillows_limit_of_the_process_stays_unless_more_is_asked_for(tmp_path, monkeypatch):
    save(tmp_path / "a.png")  # of 64 x 48 pixels
    monkeypatch.setattr(images.Image, "MAX_IMAGE_PIXELS", 2000)  # up to twice as many are a warning
    with pytest.raises(images.TooManyPixelsError, match="64 x 48 pixels, more than the limit of 3"):
        images.read_image(tmp_path / "a.png", max_pixels=3000)
    images.Image.MAX_IMAGE_PIXELS = 1000
    with pytest.raises(images.TooManyPixelsError, match=r"MAX_IMAGE_PIXELS, 1000"):
        images.read_image(tmp_path / "a.png")
    assert images.Image.MAX_IMAGE_PIXELS == 1000
    more = images.MAX_PIXELS + 1
    assert images.read_image(tmp_path / "a.png", max_pixels=more).shape == (48, 64, 3)
    assert images.Image.MAX_IMAGE_PIXELS == more


@pytest.mark.detectron2
def test_ordinary_files_have_detectron2s_pixels(tmp_path):
    detectron2_reader = pytest.importorskip("detectron2.data.detection_utils").read_image
    same = 0
    for name in good_pictures(tmp_path):
        if name not in ("grey_16.png", "float.tif"):  # white and black there
            expected = detectron2_reader(str(tmp_path / name), "RGB")
            np.testing.assert_array_equal(images.read_image(tmp_path / name), expected, name)
            same += 1
    assert same > 25


def test_threads_need_not_import_plugins():
    """Two that did so at once could wait for each other for ever (python/cpython#106176)."""
    code = (
        "import sys, solo_d2.utils.images\n"
        "known = set(sys.modules)\n"
        "from PIL import Image\n"
        "Image.init()\n"
        "assert 'PIL.TiffImagePlugin' in known and set(sys.modules) == known"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
