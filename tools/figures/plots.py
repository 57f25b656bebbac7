"""Save matplotlib figures."""

import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from solo_d2.utils.files import whole_file


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically, in the format of the file's suffix."""
    FigureCanvasAgg(figure)
    picture = io.BytesIO()  # Pillow raises nothing when the disk is full
    figure.savefig(picture, dpi=110, format=path.suffix.lstrip(".") or "png")
    with whole_file(path) as file:
        file.write_bytes(picture.getvalue())
