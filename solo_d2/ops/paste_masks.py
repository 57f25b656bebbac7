"""The final resize: from soft masks to binary masks and boxes at the output size.

Upsample to the input size, crop the padding, resize to the output, threshold. Both resizes are
bilinear, as in the published code. Together they are a linear map along each axis, so an output
pixel can only be set if one of the few mask pixels it depends on is above the threshold.

Shape letters: M masks, H W rows and columns of the soft masks, H' W' of the output.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from solo_d2.ops.backends import choose_backend
from solo_d2.ops.binary_masks import zero_masks
from solo_d2.ops.mask_factors import resize_to_output
from solo_d2.ops.mask_geometry import boxes_of_lines, line_spans, mask_boxes
from solo_d2.ops.threads import in_threads

# Maximum float32 elements of each of the reference's two steps (64 MiB).
CHUNK_ELEMENTS = 1 << 24
# Output rows that are computed at once, and output columns of a group. An output pixel depends on
# few mask pixels, so most weights of a wide group are 0.
ROWS, COLUMNS = 256, 64


def paste_masks(
    mask_probs: Tensor,
    *,
    stride: int,
    image_size: tuple[int, int],
    thresh: float,
    out: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Resize soft masks to the output size, threshold them, and compute their boxes.

    Args:
        mask_probs: (M, H, W) over the padded input; float32, or of half precision under autocast.
        stride: stride of the masks in input pixels.
        image_size: height and width of the image in the padded input.
        thresh: a pixel is set above this probability, which is at least 0.
        out: (M, H', W') bool from `new_masks`, to which the masks are written.
        backend: "torch" resizes whole masks (the reference; 128 MiB, or two whole masks if that is
            more); "tiled" computes only rows and columns that a mask can reach, 256 rows at once
            (2.4 MiB per thread for 1216 columns);
            "triton" does everything in one pass. "auto" is "tiled" on the CPU and "triton" on a
            GPU, or "torch" if that cannot run. Results differ only by rounding.

    Returns:
        (M, 4) float32 boxes of the masks in `out`, see `mask_boxes`.
    """
    backend = choose_backend(backend, mask_probs.device)
    if out.numel() == 0 or mask_probs.numel() == 0:
        out.zero_()
        return torch.zeros(len(out), 4, device=out.device)
    if backend == "triton":
        from solo_d2.ops.triton.paste_masks import paste_masks_triton

        return paste_masks_triton(mask_probs, stride, image_size, thresh, out)
    if backend == "torch":
        _paste_torch(mask_probs, stride, image_size, thresh, out)
        return mask_boxes(out)
    return _paste_tiled(mask_probs, stride, image_size, thresh, out)


def new_masks(
    num: int, size: tuple[int, int], device: torch.device, *, backend: str = "auto"
) -> Tensor:
    """Allocate (M, H', W') bool for `paste_masks`, cleared if the backend skips pixels."""
    if choose_backend(backend, device) == "triton":
        return torch.empty(num, *size, dtype=torch.bool, device=device)
    return zero_masks((num, *size), device)


def _paste_torch(
    mask_probs: Tensor, stride: int, image_size: tuple[int, int], thresh: float, out: Tensor
) -> None:
    """Compute by definition, in chunks of whole masks."""
    height, width = mask_probs.shape[1] * stride, mask_probs.shape[2] * stride
    output_size = (out.shape[1], out.shape[2])
    chunk = max(1, CHUNK_ELEMENTS // max(height * width, output_size[0] * output_size[1]))
    for start in range(0, len(mask_probs), chunk):
        part = mask_probs[start : start + chunk, None]
        part = resize_to_output(part, stride, image_size, output_size)
        torch.gt(part[:, 0], thresh, out=out[start : start + chunk])


class Axis(NamedTuple):
    """Both resizes along one axis, from N mask pixels to N' output pixels, on the host.

    Attributes:
        weights: (N', N) float32.
        first: (N',) int64, the first mask pixel that each output pixel depends on; non-decreasing.
        last: (N',) int64, the last one; non-decreasing.
    """

    weights: Tensor
    first: Tensor
    last: Tensor

    def reached(self, lines: Tensor) -> list[list[int]]:
        """Return the spans [start, stop) of output pixels that depend on flagged mask pixels."""
        start, stop = line_spans(lines.cpu())
        first = torch.searchsorted(self.last, start)
        return torch.stack([first, torch.searchsorted(self.first, stop)], dim=1).tolist()

    def blocks(self, start: int, stop: int) -> Iterator[tuple[slice, slice]]:
        """Split a span of output pixels into blocks, each with the mask pixels it depends on."""
        for block in range(start, stop, ROWS):
            end = min(block + ROWS, stop)
            yield slice(block, end), slice(int(self.first[block]), int(self.last[end - 1]) + 1)

    def groups(self) -> tuple[Tensor, Tensor]:
        """Split the axis into G groups of COLUMNS output pixels, the last one padded.

        Returns:
            (G, K) int64, the mask pixels that each group depends on; and (G, K, COLUMNS) float32,
            their weights.
        """
        num_output, num = self.weights.shape
        starts = torch.arange(0, num_output, COLUMNS)
        stops = (starts + COLUMNS).clamp(max=num_output)
        first, last = self.first[starts], self.last[stops - 1]
        length = int((last - first).max()) + 1
        pixels = first.clamp(max=num - length)[:, None] + torch.arange(length)
        weights = F.pad(self.weights, (0, 0, 0, len(starts) * COLUMNS - num_output))
        weights = weights.view(len(starts), COLUMNS, num).transpose(1, 2)
        return pixels, weights.take_along_dim(pixels[:, :, None], dim=1)


def resize_axis(size: int, stride: int, image_size: int, output_size: int) -> Axis:
    """Compute the weights of both resizes by resizing each unit vector.

    Args:
        size: mask pixels along the axis.
        stride: stride of the masks in input pixels.
        image_size: input pixels of the image.
        output_size: output pixels.
    """
    lines = torch.eye(size)[:, None]
    lines = F.interpolate(lines, size=size * stride, mode="linear", align_corners=False)
    lines = lines[:, :, :image_size]
    if output_size != image_size:
        lines = F.interpolate(lines, size=output_size, mode="linear", align_corners=False)
    weights = lines[:, 0].T.contiguous()
    used = (weights > 0).byte()
    last = size - 1 - used.flip(1).argmax(dim=1)
    return Axis(weights, used.argmax(dim=1), last)


def _paste_tiled(
    mask_probs: Tensor, stride: int, image_size: tuple[int, int], thresh: float, out: Tensor
) -> Tensor:
    """Compute only what a mask can reach: blocks of rows, each for all its groups of columns."""
    mask_probs = mask_probs.float()
    rows = resize_axis(mask_probs.shape[1], stride, image_size[0], out.shape[1])
    columns = resize_axis(mask_probs.shape[2], stride, image_size[1], out.shape[2])
    to_rows = rows.weights.to(out.device)
    from_columns, to_columns = (part.to(out.device) for part in columns.groups())
    row_spans = rows.reached(mask_probs.amax(dim=2) > thresh)
    column_spans = columns.reached(mask_probs.amax(dim=1) > thresh)
    # Positive where a mask has a pixel in that row or column.
    has_row = torch.zeros(out.shape[0], out.shape[1], device=out.device)
    has_column = torch.zeros(out.shape[0], out.shape[2], device=out.device)
    jobs = iter(range(len(mask_probs)))

    def work() -> None:
        for mask in jobs:
            start, stop = column_spans[mask]
            groups = slice(start // COLUMNS, -(-stop // COLUMNS))
            x = slice(groups.start * COLUMNS, min(groups.stop * COLUMNS, out.shape[2]))
            weights = to_columns[groups]
            num, length = weights.shape[:2]
            pixels = mask_probs[mask].index_select(1, from_columns[groups].flatten())
            for y, from_y in rows.blocks(*row_spans[mask]):
                resized = (to_rows[y, from_y] @ pixels[from_y]).view(-1, num, length)
                block = (resized.transpose(0, 1) @ weights).transpose(0, 1).flatten(1)
                block = block[:, : x.stop - x.start]
                # Comparing into floats and converting them is faster than into bool.
                out[mask, y, x].copy_(block.gt_(thresh))
                has_row[mask, y] += block.amax(dim=1)
                has_column[mask, x] += block.amax(dim=0)

    in_threads(work)
    return boxes_of_lines(has_column > 0, has_row > 0)
