"""Save matplotlib figures."""

import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from solo_d2.utils.errors import ConfigError
from solo_d2.utils.files import whole_file


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically, in the format of the file's suffix; ConfigError if unknown."""
    canvas = FigureCanvasAgg(figure)
    kind, known = path.suffix.lstrip(".").lower() or "png", canvas.get_supported_filetypes()
    if kind not in known:
        raise ConfigError(f"{path} has an unknown extension: use one of {', '.join(sorted(known))}")
    picture = io.BytesIO()  # Pillow raises nothing when the disk is full
    figure.savefig(picture, dpi=110, format=kind)
    with whole_file(path) as file:
        file.write_bytes(picture.getvalue())
