"""Where results go: names that do not clash, and errors before the work rather than after it."""

import os
from collections.abc import Sequence
from pathlib import Path

from solo_d2.api.images import EXTENSIONS, OUTPUT_EXTENSIONS, output_names
from solo_d2.utils.errors import ConfigError


def plan_overlays(output: str | None, files: Sequence[Path]) -> list[Path | None]:
    """Where the overlay of each file goes.

    Args:
        output: --output.
        files: the images, each once.

    Raises:
        ConfigError: --output is a file but there are several images, is of a kind that is not
            written, cannot be written to, or an image would be replaced by its overlay.
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
    """Fail before the work is done rather than after it.

    Raises:
        ConfigError: the folder of the file can't be made or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder {path.parent} can't be made: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"The folder {path.parent} can't be written to")
