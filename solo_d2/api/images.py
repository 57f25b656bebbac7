"""Find image files, choose output paths and write images.

Imports neither torch nor Detectron2. Images are (H, W, 3) uint8 RGB.
"""

import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from solo_d2.utils.errors import ConfigError
from solo_d2.utils.files import whole_file
from solo_d2.utils.images import (
    EXTENSIONS,
    MAX_PIXELS,
    ImageError,
    limit_pixels,
    read_image,
    write_image,
)

# Includes the public names of `solo_d2.utils.images`.
__all__ = ["EXTENSIONS", "MAX_PIXELS", "ImageError", "limit_pixels", "read_image"]

# Formats of overlays.
OUTPUT_EXTENSIONS = (".jpg", ".jpeg", ".png")


def expand_inputs(patterns: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Expand files, folders and globs to files.

    An existing path is never treated as a glob. Folders are not searched recursively (use `**` in
    a glob), and their hidden files are left out.

    Args:
        patterns: paths of files or folders, or globs.

    Returns:
        The distinct files, in the given order and sorted within a folder or glob; and the patterns
        without a file.
    """
    files = {pattern: _expand(os.path.expanduser(pattern)) for pattern in patterns}
    found: dict[Path, Path] = {}
    for file in itertools.chain(*files.values()):
        found.setdefault(file.resolve(), file)
    return list(found.values()), [pattern for pattern in files if not files[pattern]]


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_dir():
        # Hidden files are not the user's images: macOS adds a ._photo.jpg for each photo.jpg.
        files = (f for f in path.iterdir() if f.suffix.lower() in EXTENSIONS and f.is_file())
        return sorted(f for f in files if not f.name.startswith("."))
    if path.is_file():
        return [path]
    return sorted(f for f in map(Path, glob.glob(pattern, recursive=True)) if f.is_file())


def output_names(files: Sequence[Path]) -> list[str]:
    """Choose distinct names in one folder for the overlays of files.

    JPG and PNG files keep their name, others get ".png" appended. Files of the same name get the
    name of their folder as prefix and, if needed, a number.

    Args:
        files: distinct image files.

    Returns:
        Names in the same order, distinct also on case-insensitive file systems.
    """
    plain = [f.name if f.suffix.lower() in OUTPUT_EXTENSIONS else f"{f.name}.png" for f in files]
    count = Counter(name.casefold() for name in plain)
    taken = {name for name, number in count.items() if number == 1}
    names = []
    for file, name in zip(files, plain, strict=True):
        if count[name.casefold()] > 1:
            stem, extension = os.path.splitext(f"{file.resolve().parent.name}_{name}")
            endings = itertools.chain([""], (f"_{number}" for number in itertools.count(2)))
            free = (f"{stem}{ending}{extension}" for ending in endings)
            name = next(name for name in free if name.casefold() not in taken)
            taken.add(name.casefold())
        names.append(name)
    return names


def plan_overlays(output: str | None, files: Sequence[Path]) -> list[Path | None]:
    """Choose the path of each overlay.

    Args:
        output: value of --output.
        files: distinct image files.

    Raises:
        ConfigError: --output is one file for several images, has an unsupported format, cannot be
            written to, or would overwrite an image.
    """
    if output is None:
        return [None] * len(files)
    target = Path(output).expanduser()
    if target.is_dir() or target.suffix.lower() not in EXTENSIONS:
        overlays = [target / name for name in output_names(files)]
    elif len(files) > 1:
        raise ConfigError(f"--output {output} is a file, but there are {len(files)} images")
    elif target.suffix.lower() not in OUTPUT_EXTENSIONS:
        raise ConfigError(f"--output {output}: overlays are written as PNG or JPG")
    else:
        overlays = [target]
    inputs = {file.resolve() for file in files}
    for overlay in overlays:
        if overlay.resolve() in inputs:
            raise ConfigError(f"--output {output} would replace the image {overlay}")
    require_writable(overlays[0])
    return [*overlays]


def require_writable(path: Path) -> None:
    """Create the folder of a file; ConfigError if the file cannot be written there."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: add the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The folder {path.parent} cannot be created: {error.strerror}"
        ) from error
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"The folder {path.parent} is not writable")


def save_image(path: Path | str, image: NDArray[np.uint8]) -> None:
    """Write an image (H, W, 3) uint8 RGB atomically, as PNG or JPG by the extension of `path`."""
    options: dict[str, Any] = {} if str(path).lower().endswith(".png") else {"quality": 92}
    with whole_file(path) as temporary:
        write_image(temporary, Image.fromarray(image), **options)
