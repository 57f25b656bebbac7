"""What a predictor takes."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from solo_d2 import ImageError
from solo_d2.api.inputs import is_one_image, load_image, load_images
from solo_d2.api.video import Video, is_video
from tests.pictures import bad_pictures, picture, save, write_video

pytestmark = pytest.mark.detectron2


def test_every_kind_of_image_gives_the_same_pixels(tmp_path):
    rgb = picture()
    file = save(tmp_path / "a.png", rgb)
    bgr = np.ascontiguousarray(rgb[:, :, ::-1])
    sources = [
        (file, "BGR"),
        (str(file), "RGB"),
        (bgr, "BGR"),
        (rgb, "RGB"),
        (np.concatenate([bgr, bgr[:, :, :1]], axis=2), "BGR"),
        (np.concatenate([rgb, rgb[:, :, :1]], axis=2), "RGB"),
        (Image.fromarray(rgb), "BGR"),
        (torch.from_numpy(bgr).permute(2, 0, 1), "BGR"),
        (torch.from_numpy(rgb).permute(2, 0, 1).float(), "RGB"),
    ]
    for source, channels in sources:
        assert is_one_image(source)
        pixels, name = load_image(source, channels)
        np.testing.assert_array_equal(pixels, rgb)
        assert pixels.flags.c_contiguous
        assert name == (str(file) if isinstance(source, (str, type(file))) else "")


def test_grey_arrays_and_modes_of_pillow():
    grey = picture()[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(load_image(grey, "BGR")[0], expected)
    np.testing.assert_array_equal(load_image(Image.fromarray(grey), "BGR")[0], expected)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), "must be uint8, not float32"),
        (np.zeros((4, 5, 2), np.uint8), r"must be \(H, W, 3\), not \(4, 5, 2\)"),
        (np.zeros((0, 5, 3), np.uint8), "no pixel"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"must be \(3, H, W\), not \(4, 5, 3\)"),
        (torch.rand(3, 4, 5), "values in \\[0, 255\\]"),
        (torch.full((3, 4, 5), -1.0), "values in \\[0, 255\\]"),
        (torch.zeros(3, 4, 5, dtype=torch.int64), "uint8 or of floats"),
        (3, "cannot be made of a int"),
        ({"image": torch.zeros(3, 4, 5)}, "cannot be made of a dict"),
        (b"bytes of a file", "cannot be made of a bytes"),
        ("gone.png", "gone.png"),
    ],
)
def test_what_is_no_image_says_why(source, message):
    with pytest.raises(ImageError, match=message):
        list(load_images([source], "BGR"))
    with pytest.raises(ImageError, match=message):
        list(load_images(source, "BGR"))


def test_other_orders_of_colours_are_refused():
    with pytest.raises(ValueError, match="'BGR' or 'RGB', not 'GBR'"):
        load_image(picture(), "GBR")


def test_folders_globs_videos_and_lists_of_them(tmp_path):
    for index in range(3):
        save(tmp_path / "in" / f"{index}.png", np.full((8, 9, 3), index, np.uint8))
    video = write_video(tmp_path / "v.avi", num=3)
    assert is_video(video)
    assert not is_video(tmp_path / "in" / "0.png")
    folder, pattern = tmp_path / "in", str(tmp_path / "in" / "[12].png")
    for source, values in (
        (folder, [0, 1, 2]),
        (pattern, [1, 2]),
        ([folder / "2.png", pattern, np.full((4, 4, 3), 7, np.uint8)], [2, 1, 2, 7]),
    ):
        assert not is_one_image(source)
        assert [int(pixels.max()) for pixels, _ in load_images(source, "BGR")] == values
    frames = list(load_images(video, "BGR"))
    assert [name for _, name in frames] == [f"{video}#{index}" for index in range(3)]
    assert [pixels.shape for pixels, _ in frames] == [(48, 64, 3)] * 3
    np.testing.assert_allclose([pixels.mean() for pixels, _ in frames], [0, 40, 80], atol=4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="there is no image"):
        list(load_images(tmp_path / "empty", "BGR"))


def test_videos_know_rate_and_length_and_bad_ones_say_why(tmp_path):
    with Video(write_video(tmp_path / "v.mp4", num=7, rate=12.5)) as video:
        assert (video.rate, video.num_frames) == (12.5, 7)
        assert len(list(video)) == 7
        assert video.read() is None
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    for name, reason in (
        ("empty.mp4", "is empty"),
        ("text.mp4", "cannot be opened as a video"),
        ("gone.mp4", "does not exist"),
        (".", "is a folder"),
    ):
        with pytest.raises(ImageError, match=reason):
            Video(tmp_path / name)


def test_a_source_without_a_rate_has_the_usual_one(monkeypatch):
    class Capture:
        def __init__(self, source):
            self.source = source

        def isOpened(self):
            return True

        def get(self, key):
            return {cv2.CAP_PROP_FPS: float("nan"), cv2.CAP_PROP_FRAME_COUNT: -1.0}[key]

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    video = Video(2)
    assert (video.name, video.rate, video.num_frames) == ("camera 2", 30.0, None)
    assert video._capture.source == 2


def test_bad_images_among_many_are_told_of_and_left_out(tmp_path):
    folder = tmp_path / "folder"
    bad = set(bad_pictures(folder)) - {"missing.jpg", "a_directory.jpg"}  # not taken from a folder
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "nothing").mkdir()
    sources = [
        folder,
        tmp_path / "gone.png",
        tmp_path / "nothing",
        tmp_path / "empty.mp4",
        picture(),
    ]
    errors = []
    names = [name for _, name in load_images(sources, "BGR", errors.append)]
    assert names == [str(folder / "good.jpg"), str(folder / "good.png"), ""]
    assert len(errors) == len(bad) + 3
    for name in (*bad, "gone.png", "nothing", "empty.mp4"):
        assert sum(f"{name}: " in str(error) for error in errors) == 1, name
    with pytest.raises(ImageError):
        list(load_images(sources, "BGR"))


def test_what_cv2_returns_for_a_bad_file_is_told_of_and_left_out():
    errors, image = [], np.zeros((4, 5, 3), np.uint8)
    assert len(list(load_images([image, None, image], "BGR", errors.append))) == 2
    assert "cv2.imread" in str(errors[0])
