"""Reading image files as 8-bit RGB, for training, evaluation, API and demo.

Neither torch nor Detectron2 is imported here. Sizes are (H, W), images (H, W, 3) uint8 RGB.

Detectron2's reader returns the same pixels for ordinary files. It turns 16-bit images white and
float images black, accepts PNGs with wrong checksums, and has no size limit.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# Allowed decoders. Others of Pillow start programs (EPS) or read rare, old formats.
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "JPEG2000", "PPM", "AVIF")
# Import Pillow's plugins here rather than on demand: two threads that import them at the same time
# can deadlock (python/cpython#106176).
Image.init()
# Extensions of images in a folder; files named explicitly may have any extension.
EXTENSIONS = frozenset(
    ".avif .bmp .dib .gif .jfif .jp2 .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
# Larger images are rejected before decoding: a small file can contain any number of pixels.
MAX_PIXELS = 80_000_000

# EXIF orientations that swap height and width.
_TURNED = (5, 6, 7, 8)
_DEPTHS = (8, 10, 12, 14, 16)


class ImageError(ValueError):
    """An image or a video cannot be used. The message names the file and the reason."""


class TooManyPixelsError(ImageError):
    """An image has more pixels than the limit."""


def limit_pixels(max_pixels: int) -> None:
    """Set Pillow's own limit for the whole process to the limit of `read_image`."""
    Image.MAX_IMAGE_PIXELS = max_pixels
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image file upright, as (H, W, 3) uint8 RGB.

    Applies the EXIF orientation, reads the first of several frames and drops an alpha channel, like
    Detectron2 in training. Gray images with more than 8 bits and float images are scaled, see
    `to_8_bit`.

    Args:
        path: the file; the format is determined by its content.
        max_pixels: maximum number of pixels. If it is above `MAX_PIXELS`, a lower limit of Pillow
            for the whole process is raised to it; else both limits apply.

    Raises:
        ImageError: the file is empty, truncated, damaged, too large, or no image.
    """
    with _opened(Path(path), max_pixels) as image:
        image.load()
        return to_rgb(image)


def read_size(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read (H, W) of the image that `read_image` returns, from the header only.

    Raises:
        ImageError: the image cannot be read according to its header; see `read_image`.
    """
    with _opened(Path(path), max_pixels) as image:
        turned = False
        if "exif" in image.info or image.format == "TIFF":  # otherwise Pillow may decode the image
            with contextlib.suppress(Exception):  # the pixels may be intact
                turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
        width, height = image.size
        return (width, height) if turned else (height, width)


@contextlib.contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image; turn all errors in the block into an ImageError."""
    if max_pixels > MAX_PIXELS and Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty")
        with Image.open(path, formats=[f for f in FORMATS if f in Image.OPEN]) as image:
            if image.width * image.height > max_pixels:
                raise TooManyPixelsError(
                    f"{path}: {image.width} x {image.height} pixels, "
                    f"more than the limit of {max_pixels}"
                )
            yield image
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit, own = f"the limit of {max_pixels}", Image.MAX_IMAGE_PIXELS or max_pixels
        limit = limit if own >= max_pixels else f"Pillow's Image.MAX_IMAGE_PIXELS, {own}, allows"
        raise TooManyPixelsError(f"{path}: more pixels than {limit}") from None
    except MemoryError:
        raise ImageError(f"{path}: not enough memory to decode it") from None
    except OSError as error:
        unknown = isinstance(error, UnidentifiedImageError)
        damaged = "not an image of a known format" if unknown else f"truncated or damaged ({error})"
        reason = error.strerror or damaged
        raise ImageError(f"{path}: {reason}") from error
    except ValueError as error:  # of `to_8_bit`, or for a mode without RGB conversion
        raise ImageError(f"{path}: {error}") from error
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        raise ImageError(f"{path}: cannot be decoded ({type(error).__name__}: {error})") from error


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert an image of any mode to upright 8-bit RGB, see `read_image`."""
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # noqa: S110  (damaged EXIF; the pixels may be intact)
        pass
    if image.mode == "F" or image.mode.startswith("I"):
        grey = to_8_bit(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))


def to_8_bit(values: NDArray) -> NDArray[np.uint8]:
    """Scale (H, W) gray values, integer or float, to uint8.

    Integers are divided by the maximum of the smallest usual bit depth (8, 10, 12, 14 or 16) that
    holds all values; floats in [0, 1] are multiplied by 255, floats in [0, 255] are kept. Other
    values are stretched from their minimum to their maximum. ValueError for non-finite values.
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("it has values that are not finite")
    if low < 0 or high >= 2**16 or (values.dtype.kind == "f" and high > 255):
        start, span = low, (high - low) or 1.0
    elif values.dtype.kind == "f":
        start, span = 0.0, 1.0 if high <= 1 else 255.0
    else:
        start, span = 0.0, next(2.0**depth - 1 for depth in _DEPTHS if high < 2**depth)
    scaled = (values.astype(np.float32) - np.float32(start)) * np.float32(255 / span)
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def write_image(file: Path | str, image: Image.Image, **options: Any) -> None:
    """Write an image with Pillow's options, in the format of the extension or `format`.

    Encodes in memory, since Pillow raises no error for a full disk. OSError if the file cannot be
    written.
    """
    kind = options.pop("format", None) or Image.registered_extensions()[Path(file).suffix.lower()]
    content = io.BytesIO()
    image.save(content, format=kind, **options)
    Path(file).write_bytes(content.getvalue())
