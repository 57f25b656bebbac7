"""Load the inputs of a predictor as 8-bit RGB: files, arrays, tensors and Pillow images.

H and W are rows and columns.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from solo_d2.api.images import expand_inputs
from solo_d2.api.video import Video, is_video
from solo_d2.utils.images import ImageError, read_image, to_rgb
from solo_d2.utils.user_code import from_user_code

OneImage = str | Path | NDArray[np.uint8] | Tensor | Image.Image
Source = OneImage | Iterable[OneImage]
# Receives the error of each unreadable source; None to raise it.
OnError = Callable[[ImageError], None] | None

CHANNELS = ("BGR", "RGB")


def is_one_image(source: Source) -> TypeGuard[OneImage]:
    """Return whether a source is one image; otherwise it is a folder, glob, video or iterable."""
    if isinstance(source, (str, Path)):
        name = os.path.expanduser(source)
        if os.path.isfile(name):
            return not is_video(name)
        return not (os.path.isdir(name) or any(sign in name for sign in "*?["))
    return isinstance(source, (np.ndarray, Tensor, Image.Image))


def load_image(image: OneImage, channels: str) -> tuple[NDArray[np.uint8], str]:
    """Convert an image to 8-bit RGB.

    Args:
        image: path of a file; uint8 array (H, W, 3), (H, W, 4), whose last channel is dropped, or
            (H, W) for grey; tensor (3, H, W), uint8 or float in [0, 255], on any device; or a
            Pillow image.
        channels: channel order of arrays and tensors, "BGR" or "RGB".

    Returns:
        (H, W, 3) uint8 RGB, and the path of the file or "".

    Raises:
        ImageError: the input is of another kind, or the file cannot be read.
        ValueError: `channels` is neither "BGR" nor "RGB".
    """
    if channels not in CHANNELS:
        raise ValueError(f"channels must be 'BGR' or 'RGB', not {channels!r}")
    if isinstance(image, (str, Path)):
        return read_image(os.path.expanduser(image)), str(image)
    if isinstance(image, Image.Image):
        return to_rgb(image), str(getattr(image, "filename", ""))
    if isinstance(image, Tensor):
        image = _array_of(image)
    if isinstance(image, np.ndarray):
        return _rgb_of(image, channels), ""
    raise ImageError(f"an image cannot be made of a {type(image).__name__}")


def load_images(
    source: Source, channels: str, on_error: OnError = None
) -> Iterator[tuple[NDArray[np.uint8], str]]:
    """Load the images of a source lazily; see `load_image`.

    Args:
        source: an image, a folder (its images, sorted), a glob, a video file, or an iterable of
            these.
        channels: see `load_image`.
        on_error: receives the error of each source that is skipped: an unreadable image or video,
            or a folder or glob without images. None to raise it.

    Yields:
        Images and names; the name of a video frame is "FILE#INDEX".

    Raises:
        ImageError: see `on_error`.
    """
    images: Iterable[OneImage]
    if is_one_image(source):
        images = [source]
    elif not isinstance(source, (str, Path)):
        try:
            parts = _parts(source)
        except ImageError as error:
            _tell(error, on_error)
            return
        for part in parts:
            yield from load_images(part, channels, on_error)
        return
    elif is_video(source):
        yield from _frames(source, on_error)
        return
    else:
        images, missing = expand_inputs([str(source)])
        if missing:
            _tell(ImageError(f"{source}: there is no image"), on_error)
    for image in images:
        try:
            loaded = load_image(image, channels)
        except ImageError as error:
            _tell(error, on_error)
        else:
            yield loaded


def _frames(source: str | Path, on_error: OnError) -> Iterator[tuple[NDArray[np.uint8], str]]:
    try:
        video = Video(os.path.expanduser(source))
    except ImageError as error:
        _tell(error, on_error)
        return
    with video:
        for index, frame in enumerate(video):
            yield frame, f"{source}#{index}"


def _tell(error: ImageError, on_error: OnError) -> None:
    if on_error is None:
        raise error
    on_error(error)


def _parts(source: Any) -> Iterator[Any]:
    if isinstance(source, (bytes, Mapping)):  # neither is a sequence of images
        raise ImageError(f"an image cannot be made of a {type(source).__name__}")
    try:
        return iter(source)
    except TypeError as error:
        if from_user_code(error):
            raise
        read = ": cv2.imread returns it for unreadable files" if source is None else ""
        raise ImageError(f"an image cannot be made of a {type(source).__name__}{read}") from None


def _array_of(tensor: Tensor) -> NDArray[np.uint8]:
    """Convert a tensor (3, H, W) to an array (H, W, 3)."""
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ImageError(f"a tensor must be (3, H, W), not {tuple(tensor.shape)}")
    if tensor.is_floating_point():
        # Values in [0, 1] are most likely meant as a share of 255.
        if tensor.numel() and not (0 <= tensor.min() and 1 < tensor.max() <= 255):
            raise ImageError("a tensor of floats must have values in [0, 255], like uint8")
        tensor = tensor.round()
    elif tensor.dtype != torch.uint8:
        raise ImageError(f"a tensor must be uint8 or of floats, not {tensor.dtype}")
    array: NDArray[np.uint8] = tensor.detach().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return array


def _rgb_of(array: NDArray[Any], channels: str) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise ImageError(f"an array must be uint8, not {array.dtype}: scale it to 0..255")
    if array.size == 0:
        raise ImageError(f"an array has no pixel: {array.shape}")
    if array.ndim == 2:
        return np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4):
        raise ImageError(f"an array must be (H, W, 3), not {array.shape}")
    colors = array[:, :, :3] if channels == "RGB" else array[:, :, 2::-1]
    return np.ascontiguousarray(colors)
