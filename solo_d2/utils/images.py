"""Reading image files of any kind as 8-bit RGB: what training, evaluation, API and demo all see.

Neither torch nor Detectron2 is imported here. Sizes are (H, W), images (H, W, 3) uint8 RGB.

Detectron2's own reader gives the same pixels for ordinary files. It makes 16-bit images white and
float images black, reads a PNG whose checksum is wrong without a complaint, and has no limit.
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

# Decoders that may see a file. Others of Pillow start programs (EPS) or read old, rare formats.
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "JPEG2000", "PPM", "AVIF")
# Pillow's plugins are imported here and not when they are first needed: of two threads that import
# them at once each may wait for the other for ever (python/cpython#106176).
Image.init()
# What is taken from a folder of images; a file that is named is read whatever its extension.
EXTENSIONS = frozenset(
    ".avif .bmp .dib .gif .jfif .jp2 .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
# Larger images are refused before they are decoded: a small file can hold any number of pixels.
MAX_PIXELS = 80_000_000

# Orientations of EXIF that swap height and width.
_TURNED = (5, 6, 7, 8)
_DEPTHS = (8, 10, 12, 14, 16)


class ImageError(ValueError):
    """An image or a video cannot be used. The message names the file and the reason."""


class TooManyPixelsError(ImageError):
    """An image has more pixels than the limit."""


def limit_pixels(max_pixels: int) -> None:
    """Set Pillow's own guard to the limit that `read_image` will be given, in the whole process."""
    Image.MAX_IMAGE_PIXELS = max_pixels
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image file upright, as (H, W, 3) uint8 RGB.

    The orientation of EXIF is applied. Of several frames the first is read. An alpha channel is
    dropped, as Detectron2 does in training. Grey images of more than 8 bits and float images are
    scaled, see `to_8_bit`.

    Args:
        path: the file; its content decides about the format, not its name.
        max_pixels: most pixels that are decoded. If it is above `MAX_PIXELS`, and Pillow's own
            limit for the whole process is lower, that is raised to it; else both limits count.

    Raises:
        ImageError: the file is empty, truncated, damaged, too large, or no image.
    """
    with _opened(Path(path), max_pixels) as image:
        image.load()
        return to_rgb(image)


def read_size(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read (H, W) of an image as `read_image` returns it, from the header alone.

    Raises:
        ImageError: the header shows that the image cannot be read; see `read_image`.
    """
    with _opened(Path(path), max_pixels) as image:
        turned = False
        if "exif" in image.info or image.format == "TIFF":  # else Pillow may decode it to look
            with contextlib.suppress(Exception):  # damaged EXIF says nothing about the pixels
                turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
        width, height = image.size
        return (width, height) if turned else (height, width)


@contextlib.contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image; whatever goes wrong with it in the block is an ImageError."""
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
    except ValueError as error:  # of `to_8_bit`, or a mode that has no RGB
        raise ImageError(f"{path}: {error}") from error
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise ImageError(f"{path}: cannot be decoded ({type(error).__name__}: {error})") from error


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Bring an image of any mode upright and to 8-bit RGB, see `read_image`."""
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # noqa: S110  (damaged EXIF says nothing about the pixels)
        pass
    if image.mode == "F" or image.mode.startswith("I"):
        grey = to_8_bit(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))


def to_8_bit(values: NDArray) -> NDArray[np.uint8]:
    """Scale (H, W) grey values, integer or float, to (H, W) uint8 that looks as meant.

    Integers are divided by the largest value of the smallest usual depth (8, 10, 12, 14 or 16 bits)
    that holds them all; floats in [0, 1] count from 0 to 1, floats in [0, 255] are taken as they
    are. Anything else is stretched from its least to its greatest value. ValueError if one is not
    finite.
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("it has values that are not finite, so their range is unknown")
    if low < 0 or high >= 2**16 or (values.dtype.kind == "f" and high > 255):
        start, span = low, (high - low) or 1.0
    elif values.dtype.kind == "f":
        start, span = 0.0, 1.0 if high <= 1 else 255.0
    else:
        start, span = 0.0, next(2.0**depth - 1 for depth in _DEPTHS if high < 2**depth)
    scaled = (values.astype(np.float32) - np.float32(start)) * np.float32(255 / span)
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def write_image(file: Path | str, image: Image.Image, **options: Any) -> None:
    """Write an image with Pillow's options, as its extension says unless `format` is given.

    It is encoded in memory, since Pillow itself raises nothing on a full disk. OSError if the file
    cannot be written.
    """
    kind = options.pop("format", None) or Image.registered_extensions()[Path(file).suffix.lower()]
    content = io.BytesIO()
    image.save(content, format=kind, **options)
    Path(file).write_bytes(content.getvalue())
