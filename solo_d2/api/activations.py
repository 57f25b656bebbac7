"""Draw what each cell of a level predicts, as in figure 4 of the SOLO paper (arXiv:1912.04488).

The outputs of the head are recorded, and the mask of every cell of a level is computed regardless
of its class score. Tile (i, j) of the sheet is the mask of cell (i, j).

S grid side, K classes, T cells of all levels, H W rows and columns of masks, h w those of tiles.
Images are (H, W, 3) uint8 RGB.
"""

import colorsys
import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from solo_d2.inference import MASK_CHUNK_ELEMENTS
from solo_d2.modeling.heads import SOLOHeadBase
from solo_d2.structures import GridCells, HeadOutputs
from solo_d2.utils.errors import ConfigError
from solo_d2.visualization.canvas import (
    GRID,
    Panel,
    Plate,
    arrange,
    as_square,
    grey_map,
    signed_map,
)
from solo_d2.visualization.colors import PAPER, probability_colors

# Approximate width of a sheet in pixels by default, and minimum tile size.
SHEET, LEAST_TILE = 1100, 10
# Minimum height of input and result in the picture, in pixels.
LEAST_PANEL = 200
# Maximum number of classes in the legend.
MAX_LEGEND = 12
# Up to this many classes have evenly spaced hues.
EVEN_HUES = 12
# Channels of the mask feature to draw for a kernel.
NUM_CHANNELS = 4
# Colours of the pictures, RGB.
SHEET_GROUND, CHOSEN = (58, 62, 70), (255, 220, 0)


@dataclass
class Recording:
    """Inputs and outputs of the last call of a model."""

    outputs: Any = None  # of the head
    image_sizes: list[tuple[int, int]] = field(default_factory=list)  # inside the padded input


@contextlib.contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Record the outputs of the head in calls that this thread makes inside the block."""
    recording, owner = Recording(), threading.get_ident()

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() == owner:
            recording.image_sizes = [tuple(x["image"].shape[-2:]) for x in args[0]]

    def after(_: nn.Module, __: tuple[Any, ...], outputs: HeadOutputs) -> None:
        if threading.get_ident() == owner:
            recording.outputs = outputs

    handles = [
        model.register_forward_pre_hook(before),
        model.head.register_forward_hook(after),  # type: ignore[union-attr]
    ]
    try:
        yield recording
    finally:
        for handle in handles:
            handle.remove()


def find_level(head: SOLOHeadBase, name: str) -> int:
    """Return the index of a level given by its index or feature; ConfigError lists all."""
    known = [str(level) for level in range(len(head.in_features))]
    for names in (known, list(head.in_features)):
        if name in names:
            return names.index(name)
    listed = ", ".join(f"{i} ({name})" for i, name in enumerate(head.in_features))
    raise ConfigError(f"Level {name!r} does not exist: choose from {listed}")


def choose_level(
    outputs: HeadOutputs, boxes: Tensor, scale_ranges: Sequence[Sequence[float]]
) -> int:
    """Return the index of the level with the most of the M found instances in its range.

    Ties go to the finer level; without any, to the highest class score. `boxes` are (M, 4) XYXY, in
    pixels of the network's input.
    """
    widths, heights = (boxes[:, 2:] - boxes[:, :2]).unbind(dim=1)
    scales = (widths * heights).sqrt()
    counts = [int(((scales >= low) & (scales <= high)).sum()) for low, high in scale_ranges]
    if max(counts) > 0:
        return counts.index(max(counts))
    best = [float(logits.max()) for logits in outputs.class_logits]
    return best.index(max(best))


@dataclass(frozen=True)
class LevelActivations:
    """The masks and class scores of all cells of a level, for one image."""

    feature: str
    probs: NDArray[np.float32]  # (S, S, h, w), the mask of cell (i, j) inside the image
    scores: NDArray[np.float32]  # (S, S), the highest class probability of each cell
    classes: NDArray[np.int64]  # (S, S), that class
    # Height and width of a cell, relative to those of the image. The grid covers the padded input.
    cell_size: tuple[float, float]


@torch.no_grad()
def level_activations(head: SOLOHeadBase, recording: Recording, level: int) -> LevelActivations:
    """Compute the masks of all cells of a level, in chunks, for the first image.

    Masks are resized such that a sheet is about `SHEET` wide.
    """
    outputs = recording.outputs
    side, stride = head.num_grids[level], head.mask_strides[level]
    height, width = recording.image_sizes[0]
    tile = max(LEAST_TILE, SHEET // side)  # longer side
    scale = tile / max(height, width)
    size = max(1, round(scale * height)), max(1, round(scale * width))
    finest = min(head.mask_strides)
    padded = outputs.mask_size[0] * finest, outputs.mask_size[1] * finest
    padded_tile = max(size[0], round(scale * padded[0])), max(size[1], round(scale * padded[1]))

    class_probs = outputs.class_logits[level][0].float().sigmoid()
    first = sum(grid**2 for grid in head.num_grids[:level])
    index = torch.arange(first, first + side**2, device=class_probs.device)
    chunk = max(1, MASK_CHUNK_ELEMENTS // (padded[0] * padded[1] // stride**2))
    tiles = []
    for part in index.split(chunk):
        probs = head.masks(outputs, 0, GridCells(part, head.mask_groups[level])).float()
        probs = F.interpolate(probs[None], padded_tile, mode="bilinear", antialias=True)[0]
        tiles.append(probs[:, : size[0], : size[1]])
    scores, classes = class_probs.max(dim=0)
    return LevelActivations(
        feature=head.in_features[level],
        probs=torch.cat(tiles).view(side, side, *size).cpu().numpy(),
        scores=scores.cpu().numpy(),
        classes=classes.cpu().numpy(),
        cell_size=(padded[0] / side / height, padded[1] / side / width),
    )


def frame_width(tile_size: tuple[int, int]) -> int:
    """Return the width of the frames around tiles, in pixels."""
    return max(2, min(tile_size) // 16)


def draw_sheet(
    activations: LevelActivations, colors: NDArray[np.uint8], *, score_thresh: float
) -> NDArray[np.uint8]:
    """Arrange the masks of all cells as the cells lie in the image; see `sheet_size`.

    Cells with a class score above the threshold have a frame in the colour (K, 3) of their class.
    The tile of cell (i, j) starts `frame_width` + 1 pixels below and right of (i * (h + 2 *
    frame_width + 1), j * ...). Mask probabilities have `probability_colors`.
    """
    side, _, height, width = activations.probs.shape
    frame = frame_width((height, width))
    pitch = height + 2 * frame + 1, width + 2 * frame + 1
    # One background pixel precedes each tile and follows the last ones.
    canvas = np.empty((side, side, *pitch, 3), dtype=np.uint8)
    canvas[:] = SHEET_GROUND
    framed = activations.scores > score_thresh
    canvas[framed, 1:, 1:] = colors[activations.classes[framed]][:, None, None]
    levels = np.rint(activations.probs * 255).astype(np.uint8)
    canvas[:, :, 1 + frame : 1 + frame + height, 1 + frame : 1 + frame + width] = (
        probability_colors()[levels]
    )
    sheet = np.empty((*sheet_size(activations), 3), dtype=np.uint8)
    sheet[:] = SHEET_GROUND
    sheet[:-1, :-1] = canvas.swapaxes(1, 2).reshape(side * pitch[0], side * pitch[1], 3)
    return sheet


def draw_cells(
    image: NDArray[np.uint8],
    activations: LevelActivations,
    colors: NDArray[np.uint8],
    *,
    score_thresh: float,
) -> NDArray[np.uint8]:
    """Draw the grid over an image and fill the cells that have a frame in the sheet."""
    height, width = image.shape[:2]
    rows = np.floor((np.arange(height) + 0.5) / (activations.cell_size[0] * height)).astype(int)
    columns = np.floor((np.arange(width) + 0.5) / (activations.cell_size[1] * width)).astype(int)
    opacity = np.where(activations.scores > score_thresh, 0.55, 0.0)[rows][:, columns, None]
    fill = colors[activations.classes][rows][:, columns]
    result = image * (1 - opacity) + fill * opacity
    line = np.diff(rows, prepend=rows[0])[:, None] | np.diff(columns, prepend=columns[0])[None]
    result = np.where((line > 0)[..., None], 0.55 * result + 0.45 * 255, result)
    return np.rint(result).astype(np.uint8)


def sheet_size(activations: LevelActivations) -> tuple[int, int]:
    """Return height and width of the sheet."""
    side, _, *tile = activations.probs.shape
    border = 2 * frame_width((tile[0], tile[1])) + 1
    return side * (tile[0] + border) + 1, side * (tile[1] + border) + 1


def panel_size(activations: LevelActivations) -> tuple[int, int]:
    """Return height and width of input and result; two are about as high as the sheet."""
    panel_height = max(LEAST_PANEL, sheet_size(activations)[0] // 2)
    tile_height, tile_width = activations.probs.shape[2:]
    return panel_height, max(1, round(panel_height * tile_width / tile_height))


def class_colors(num_classes: int) -> NDArray[np.uint8]:
    """Return (K, 3) RGB: evenly spaced hues; for many classes, neighbours differ."""
    step = 1 / num_classes if num_classes <= EVEN_HUES else 0.618034  # golden ratio
    lightness = (0.62, 0.55, 0.72)  # all legible on black
    colors = [
        colorsys.hls_to_rgb((0.58 + index * step) % 1.0, lightness[index % 3], 0.85)
        for index in range(num_classes)
    ]
    return np.rint(255 * np.array(colors)).astype(np.uint8)


def compose(
    image: NDArray[np.uint8],
    result: NDArray[np.uint8],
    activations: LevelActivations,
    class_names: Sequence[str],
    colors: NDArray[np.uint8],
    *,
    score_thresh: float,
) -> NDArray[np.uint8]:
    """Compose the picture: input and result left, sheet right, legend below."""
    height, width = panel_size(activations)

    def resized(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        scaled = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
        return np.array(scaled)

    sheet = draw_sheet(activations, colors, score_thresh=score_thresh)
    cells = draw_cells(resized(image), activations, colors, score_thresh=score_thresh)
    side, font_size = len(activations.scores), max(12, sheet.shape[1] // 64)
    left = arrange(
        [[Panel(cells, f"input, {side} x {side} cells")], [Panel(resized(result), "result")]],
        font_size=font_size,
        gap=0,
    )
    shown = np.unique(activations.classes[activations.scores > score_thresh]).tolist()
    swatch = np.ones((font_size, 2 * font_size, 1), dtype=np.uint8)
    legend = [Panel(swatch * colors[index], class_names[index]) for index in shown[:MAX_LEGEND]]
    above = f"a class score above {score_thresh:g}"
    more = f", {len(shown)} classes" if len(shown) > MAX_LEGEND else ""
    title = f"cells with {above}{more}:" if legend else f"no cell has {above}"
    paper = np.full((1, 1, 3), PAPER, dtype=np.uint8)
    sheet_title = f"mask of each cell of level {activations.feature}"
    rows = [[Panel(left), Panel(sheet, sheet_title)], [Panel(paper, title), *legend]]
    return arrange(rows, font_size=font_size)


@torch.no_grad()
def cell_panels(
    head: SOLOHeadBase,
    outputs: HeadOutputs,
    image: NDArray[np.uint8],
    level: int,
    cell: tuple[int, int],
    size: int,
) -> list[Panel]:
    """Draw a cell, its kernel, the channels that the kernel weighs most, and the cell's mask.

    Heads without kernels have the first and the last panel alone.

    Args:
        head: of the model.
        outputs: what it predicts for one image.
        image: the padded input, at any scale.
        level: index of the level.
        cell: row and column.
        size: longer side of each panel in pixels.
    """
    (row, column), side = cell, head.num_grids[level]
    height, width = image.shape[:2]
    pitch = height / side, width / side
    plate = Plate(image, size / max(height, width))
    plate.grid(pitch, side, GRID)
    left, top = column * pitch[1], row * pitch[0]
    plate.rectangle((left, top, left + pitch[1], top + pitch[0]), CHOSEN, 3)
    panels = [Panel(plate.picture, f"cell ({row}, {column}) of {head.in_features[level]}")]
    first = sum(grid**2 for grid in head.num_grids[:level])
    index = torch.tensor([first + row * side + column], device=outputs.class_logits[level].device)
    cells = GridCells(index, head.mask_groups[level])
    factors = head.mask_factors(outputs, 0, cells) or ()
    if len(factors) == 1 and factors[0].is_product:
        kernel, feature = factors[0].kernels[0].cpu(), factors[0].maps[0].cpu()
        panels.append(
            Panel(signed_map(as_square(kernel.numpy()), size), f"kernel: {len(kernel)} weights")
        )
        # Influence of each channel on the result.
        weight = kernel.abs() * feature.flatten(1).std(dim=1)
        for channel in weight.topk(min(NUM_CHANNELS, len(weight))).indices.tolist():
            shades = (feature[channel] / feature[channel].max()).numpy()
            title = f"channel {channel}: {kernel[channel]:+.2f}"
            panels.append(Panel(grey_map(shades, size), title))
    (mask,) = head.masks(outputs, 0, cells)
    panels.append(Panel(grey_map(mask.float().cpu().numpy(), size), "mask probability"))
    return panels
