"""The reader that needs OpenCV alone, beside the one of everything else."""

from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from PIL import Image

from solo_d2.export import predict, reading
from solo_d2.utils import images
from tests.pictures import bad_pictures, good_pictures, png_of_size, scene

# Damage that OpenCV does not see.
UNSEEN = {"flipped_bytes.jpg"}


def test_it_reads_what_the_other_reads(tmp_path):
    for name in good_pictures(tmp_path):
        if name == "float.tif" or not cv2.haveImageReader(str(tmp_path / name)):  # GIF before 4.12
            with pytest.raises(ValueError, match=f"{name}: no image that OpenCV can read"):
                reading.read_image(tmp_path / name)
            continue
        expected = images.read_image(tmp_path / name)[:, :, ::-1]
        found = reading.read_image(tmp_path / name)
        assert found.dtype == np.uint8
        assert found.shape == expected.shape, name
        # JPEGs are decoded by another library, and CMYK is converted by another formula.
        assert np.abs(found.astype(int) - expected).mean() < 2, name


def test_bad_files_are_refused_with_their_name(tmp_path):
    for name in set(bad_pictures(tmp_path)) - UNSEEN:
        with pytest.raises(ValueError, match=name) as error:
            reading.read_image(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("encode", [png_of_size, None])
def test_size_is_looked_at_before_decoding(tmp_path, monkeypatch, encode):
    if encode is None:
        Image.new("L", (9000, 9000)).save(tmp_path / "a", format="JPEG")
    else:
        (tmp_path / "a").write_bytes(encode(9000, 9000))

    def decode(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", decode)
    with pytest.raises(ValueError, match="81000000 pixels, more than the limit of 80000000"):
        reading.read_image(tmp_path / "a")


def test_a_jpeg_without_its_end_is_refused_even_if_opencv_would_take_half(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[270] = "a text with the end of a thumbnail, \u00ff\u00d9, in it"
    Image.fromarray(scene()).save(tmp_path / "a.jpg", exif=exif, comment=b"and \xff\xd9 here")
    content = (tmp_path / "a.jpg").read_bytes()
    assert reading.read_image(tmp_path / "a.jpg").shape == (48, 64, 3)
    (tmp_path / "a.jpg").write_bytes(content + b"what some cameras append")
    assert reading.read_image(tmp_path / "a.jpg").shape == (48, 64, 3)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: scene())  # as OpenCV 4
    for length in (len(content) - 2, len(content) - 100, 30):
        (tmp_path / "a.jpg").write_bytes(content[:length])
        with pytest.raises(ValueError, match="the JPEG has no end"):
            reading.read_image(tmp_path / "a.jpg")


def test_a_folder_named_as_an_image_is_no_image(tmp_path):
    good_pictures(tmp_path)
    (tmp_path / "0.jpg").mkdir()
    (tmp_path / "._1.jpg").write_text("metadata of macOS")
    found = predict.find_files([str(tmp_path)])
    assert not any(file.name.startswith(".") for file in found)
    assert tmp_path / "0.jpg" not in found
    assert len(found) > 20


@pytest.mark.parametrize("name", ["folder", "0.png"])
def test_json_that_would_be_lost_or_replace_an_image(tmp_path, capsys, name):
    (tmp_path / "folder").mkdir()
    image = tmp_path / "0.png"
    Image.fromarray(scene()).save(image)
    before = image.read_bytes()
    args = ["--onnx", "gone.onnx", "--input", str(image), "--json", str(tmp_path / name)]
    assert predict.main(args) == 2
    assert f"--json {tmp_path / name} is a folder or an image" in capsys.readouterr().err
    assert image.read_bytes() == before


def test_an_image_that_the_model_cannot_take_leaves_the_others(tmp_path, monkeypatch, capsys):
    for name in "ab":
        Image.fromarray(scene()).save(tmp_path / f"{name}.png")
    empty = {
        "classes": np.zeros(0, np.int64),
        "scores": np.zeros(0, np.float32),
        "boxes": np.zeros((0, 4), np.float32),
        "masks": np.zeros((0, 48, 64), bool),
    }
    detector = Mock(side_effect=[ValueError("out of memory"), [empty]])
    monkeypatch.setattr(predict.Detector, "load", lambda *_, **__: detector)
    output = tmp_path / "all.json"
    args = ["--onnx", "m.onnx", "--input", str(tmp_path), "--json", str(output)]
    assert predict.main(args) == 1
    assert f"{tmp_path / 'a.png'}: out of memory" in capsys.readouterr().err
    assert output.read_text() == "[]"


def test_a_threshold_is_a_probability():
    with pytest.raises(SystemExit):
        predict.parse_args(
            ["--onnx", "m", "--input", "a", "--json", "b", "--confidence-threshold", "30"]
        )
