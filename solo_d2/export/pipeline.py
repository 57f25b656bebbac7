"""Inference of a SOLO model as one graph of fixed structure, for export.

The steps are those of `solo_d2.inference`, with shapes that do not depend on the image: instead of
all candidates above the threshold, the best `topk` (cell, class) pairs are selected, and those
below the threshold get score 0. Images with more candidates (see `num_candidates`) may get slightly
different results than in `MaskDecoder`.

B images, H W rows and columns of the padded input, H' W' of the output, T cells, K classes, M
candidates whose masks are computed, N candidates that enter NMS, D detections of an image, h w rows
and columns of the masks at the finest mask stride.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import NamedTuple, cast

import torch
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from solo_d2.inference import fixed_head_masks
from solo_d2.modeling.heads.base import SOLOHeadBase, resize_by_regions
from solo_d2.modeling.layers import DeformConv2d
from solo_d2.modeling.meta_arch.panoptic import PanopticSOLO
from solo_d2.modeling.meta_arch.solo import SOLO
from solo_d2.ops.candidates import class_probabilities
from solo_d2.ops.cell_masks import take
from solo_d2.ops.fast_nms import fast_nms
from solo_d2.ops.mask_factors import resize
from solo_d2.ops.matrix_nms import matrix_decay, matrix_nms
from solo_d2.structures import HeadOutputs
from solo_d2.utils.errors import ConfigError


class Detections(NamedTuple):
    """Outputs of the graph. Detections are padded with zeros.

    Attributes:
        scores: (B, D) float32, non-increasing.
        classes: (B, D) int64 in [0, K).
        boxes: (B, D, 4) float32, XYXY in output pixels, right and lower edge exclusive.
        masks: (B, D, H', W') bool.
        num_detections: (B,) int64, number of detections without padding.
        num_candidates: (B,) int64, number of (cell, class) pairs above the score threshold.
    """

    scores: Tensor
    classes: Tensor
    boxes: Tensor
    masks: Tensor
    num_detections: Tensor
    num_candidates: Tensor


class SoftDetections(NamedTuple):
    """Outputs of a graph without the final resize; see `Detections`.

    Attributes:
        masks: (B, D, h, w) float32 probabilities over the padded input.
    """

    scores: Tensor
    classes: Tensor
    masks: Tensor
    num_detections: Tensor
    num_candidates: Tensor


class ExportPipeline(nn.Module):
    """A copy of a model, from uint8 images to detections."""

    pixel_mean: Tensor
    pixel_std: Tensor
    cell_strides: Tensor

    def __init__(
        self, model: SOLO, *, topk: int | None = None, half: bool = False, soft_masks: bool = False
    ):
        """Copy a model.

        Args:
            model: model with any head that predicts masks, and Matrix or Fast NMS.
            topk: M, number of candidates whose masks are computed; None: as many as enter NMS.
            half: whether backbone and head compute in float16. The following steps stay in float32,
                as do deformable convolutions, whose positions need more precision.
            soft_masks: whether the graph returns `SoftDetections`.

        Raises:
            ConfigError: a part of the model cannot be exported; the message names its key.
        """
        super().__init__()
        params = model.decoder_params
        _check_exportable(model)
        self.decay = _build_decay(params["nms"])
        self.class_agnostic = bool(params["nms"].keywords["class_agnostic"])
        self.score_thresh, self.mask_thresh = params["score_thresh"], params["mask_thresh"]
        self.keep_thresh = params["keep_thresh"]
        self.pre_nms_topk, self.max_detections = params["pre_nms_topk"], params["max_detections"]
        self.topk = self.pre_nms_topk if topk is None else topk
        if self.topk < 1:
            raise ConfigError(f"topk is {self.topk}, but must be at least 1")
        self.soft_masks = soft_masks
        self.dtype = torch.float16 if half else torch.float32
        model = deepcopy(model).cpu().float().eval().requires_grad_(False)
        self.num_classes = model.num_classes
        self.mask_stride = min(model.head.mask_strides)
        self.backbone, self.head = model.backbone, model.head
        top = getattr(self.backbone, "top_block", None)
        if isinstance(top, LastLevelMaxPool):
            self.backbone.top_block = _EverySecond(top)
        for part in (self.backbone, self.head) if half else ():
            part.half()
            _keep_float32(part)
        for name in ("pixel_mean", "pixel_std"):
            self.register_buffer(name, getattr(model, name))
        self.register_buffer("cell_strides", model.strides[model.cell_levels])  # (T,)

    def forward(
        self,
        images: Tensor,
        image_sizes: Tensor,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> Detections | SoftDetections:
        """Find the instances of a batch.

        Args:
            images: (B, 3, H, W) uint8 in the model's channel order, H and W multiples of the
                backbone's divisor. The padding has no effect.
            image_sizes: (B, 2) int64, height and width of each image, at the upper left.
            rows: (B, H') float32, the row of the image in pixels at which each output row is
                sampled; rows outside [0, height - 1] stay empty. Not needed for soft masks.
            columns: (B, W') float32, likewise.

        Returns:
            The detections, best first.
        """
        outputs = self.head(self.backbone(self.normalise(images, image_sizes)))
        cells, classes, scores, num_candidates = self.choose(outputs.class_logits)
        probs = self.cell_masks(outputs, cells)
        scores, kept = self.score_and_suppress(probs, cells, classes, scores)
        classes, probs = take(classes, kept), take(probs, kept)
        is_there = scores > 0
        classes = classes * is_there
        probs = torch.where(is_there[:, :, None, None], probs, 0)
        counts = is_there.sum(dim=1), num_candidates
        if self.soft_masks:
            return SoftDetections(scores, classes, probs, *counts)
        assert rows is not None
        assert columns is not None
        masks, boxes = self.paste(probs, image_sizes, rows, columns)
        return Detections(scores, classes, boxes, masks, *counts)

    def normalise(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """Normalize images to (B, 3, H, W) float, with 0 as padding, as in training."""
        rows = torch.arange(images.shape[2], device=images.device)
        columns = torch.arange(images.shape[3], device=images.device)
        in_height, in_width = rows < image_sizes[:, :1], columns < image_sizes[:, 1:]
        pixels = (images.float() - self.pixel_mean) / self.pixel_std
        inside = in_height[:, None, :, None] & in_width[:, None, None, :]
        return torch.where(inside, pixels, 0).to(self.dtype)

    def cell_masks(self, outputs: HeadOutputs, cells: Tensor) -> Tensor:
        """Compute the probabilities (B, M, h, w) float32 of cells (B, M)."""
        return cast(Tensor, fixed_head_masks(self.head, outputs, cells))

    def choose(self, class_logits: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Select the best (cell, class) pairs.

        Returns:
            Cells, classes and scores, (B, M) each, by descending score, 0 below the threshold; and
            (B,) the number of candidates.
        """
        probs = class_probabilities(class_logits).flatten(1)
        is_candidate = probs > self.score_thresh  # False for NaN
        num_candidates = is_candidate.sum(dim=1)
        probs = torch.where(is_candidate, probs, 0)
        scores, index = probs.topk(min(self.topk, len(self.cell_strides) * self.num_classes))
        return index // self.num_classes, index % self.num_classes, scores, num_candidates

    def score_and_suppress(
        self, probs: Tensor, cells: Tensor, classes: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Multiply scores by the maskness, apply mask NMS, final filter and cut.

        Args:
            probs: (B, M, h, w) float32.
            cells: (B, M).
            classes: (B, M).
            scores: (B, M), 0 for pairs that are no candidates.

        Returns:
            (B, D) scores, descending, 0 for none; and (B, D) the index of each among the M.
        """
        foreground = (probs > self.mask_thresh).float().flatten(2)
        areas = foreground.sum(dim=2)
        maskness = (foreground * probs.flatten(2)).sum(dim=2) / areas.clamp(min=1)
        # NaN pixels make the maskness NaN, and the mask is dropped.
        large = (areas > self.cell_strides[cells]) & (maskness >= 0)
        scores = torch.where(large, scores * maskness, 0)
        # Sort the small matrix of overlaps rather than the masks.
        overlaps = foreground @ foreground.transpose(1, 2)
        scores, order = scores.topk(min(self.pre_nms_topk, scores.shape[1]))
        overlaps = take(take(overlaps, order).transpose(1, 2), order)
        areas, classes = take(areas, order), take(classes, order)
        scores = scores * self.decay(self._upper_iou(overlaps, areas, classes, scores > 0))
        scores, best = scores.topk(min(self.max_detections, scores.shape[1]))
        scores = torch.where(scores >= self.keep_thresh, scores, 0)
        return scores, take(order, best)

    def _upper_iou(self, overlaps: Tensor, areas: Tensor, classes: Tensor, valid: Tensor) -> Tensor:
        """Compute (B, N, N) IoU of each mask with later ones of its class, else 0."""
        unions = areas[:, :, None] + areas[:, None, :] - overlaps
        competes = valid[:, :, None] & valid[:, None, :]
        if not self.class_agnostic:
            competes = competes & (classes[:, :, None] == classes[:, None, :])
        rank = torch.arange(overlaps.shape[1], device=overlaps.device)
        competes = competes & (rank[:, None] < rank)
        return torch.where(competes, overlaps / unions.clamp(min=1), 0)

    def paste(
        self, probs: Tensor, image_sizes: Tensor, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Resize soft masks (B, D, h, w) to the output by one product along each axis.

        Returns:
            (B, D, H', W') bool and (B, D, 4) float32 boxes.
        """
        stride, (height, width) = self.mask_stride, probs.shape[2:]
        to_rows = axis_weights(rows, image_sizes[:, 0], height, stride)[:, None]
        to_columns = axis_weights(columns, image_sizes[:, 1], width, stride)[:, None]
        values = to_rows @ (probs @ to_columns.transpose(2, 3))
        left, right = _spans(values.amax(dim=2) > self.mask_thresh)
        top, bottom = _spans(values.amax(dim=3) > self.mask_thresh)
        return values > self.mask_thresh, torch.stack([left, top, right, bottom], dim=2)


def axis_weights(positions: Tensor, sides: Tensor, size: int, stride: int) -> Tensor:
    """Compute the weight of each mask pixel for each output pixel along an axis.

    The mask is upsampled bilinearly by its stride, the padding cropped, and the result sampled
    bilinearly; `solo_d2.export.pixels` does the same in NumPy.

    Args:
        positions: (B, N) float32, sample positions in image pixels.
        sides: (B,) int64, pixels of the image.
        size: mask pixels.
        stride: stride of the masks in input pixels.

    Returns:
        (B, N, size) float32; zeros for positions outside the image.
    """
    last = (sides - 1).to(positions.dtype)[:, None]
    inside = (positions >= 0) & (positions <= last)
    first = positions.floor()
    fraction = (positions - first)[:, :, None]
    second = torch.minimum(first + 1, last)
    index = torch.arange(size, device=positions.device).to(positions.dtype)

    def enlarged(pixel: Tensor) -> Tensor:
        source = ((pixel + 0.5) / stride - 0.5).clamp(min=0)
        source = torch.minimum(source, index[-1:])
        return (1 - (source[:, :, None] - index).abs()).clamp(min=0)

    weights = (1 - fraction) * enlarged(first) + fraction * enlarged(second)
    return weights * inside[:, :, None]


def _spans(flags: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first flag of each line (B, D, size) and one past the last, float32; 0 if none."""
    index = torch.arange(flags.shape[2], device=flags.device).float()
    stop = torch.where(flags, index + 1, 0).amax(dim=2)
    first = torch.where(flags, index, index[-1:]).amin(dim=2)
    return torch.minimum(first, stop), stop


def _check_exportable(model: SOLO) -> None:
    if type(model.head).mask_factors is SOLOHeadBase.mask_factors:
        raise ConfigError(
            f"MODEL.SOLO.HEAD.NAME is {type(model.head).__name__!r}, but only heads with the method"
            " `mask_factors` are exported"
        )
    if isinstance(model, PanopticSOLO):
        raise ConfigError(
            "MODEL.META_ARCHITECTURE is 'PanopticSOLO', but only instances can be exported: set it "
            "to 'SOLO' to export them with the same weights"
        )
    if model.decoder_params["contours"]:
        raise ConfigError("MODEL.SOLO.MASK_TARGET is 'contour', but only 'mask' is exported")
    if model.head.align not in (resize, resize_by_regions):
        raise ConfigError(
            "MODEL.SOLO.HEAD.ALIGN is 'max_pool', which cannot be exported with dynamic sizes: use "
            "'interpolate' or 'region_grid'"
        )


def _build_decay(nms: "partial[Tensor]") -> Callable[[Tensor], Tensor]:
    """Return the function from IoU (B, N, N), 0 on and below the diagonal, to factors (B, N)."""
    params = nms.keywords
    if nms.func is matrix_nms:
        return partial(matrix_decay, kernel=params["kernel"], sigma=params["sigma"])
    if nms.func is fast_nms:
        return lambda iou: (iou.amax(dim=-2) <= params["thresh"]).to(iou.dtype)
    name = getattr(nms.func, "__name__", str(nms.func)).removesuffix("_nms")
    raise ConfigError(
        f"MODEL.SOLO.NMS.TYPE is {name!r}, which processes masks sequentially; only 'matrix' and "
        "'fast' can be exported"
    )


class _EverySecond(nn.Module):
    """`LastLevelMaxPool` without pooling, which would specialize a trace to even or odd sizes."""

    def __init__(self, pool: LastLevelMaxPool):
        super().__init__()
        self.num_levels, self.in_feature = pool.num_levels, pool.in_feature

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) to one (B, C, ceil(H / 2), ceil(W / 2))."""
        return [x[:, :, ::2, ::2]]


class _Float32(nn.Module):
    """Run a layer in float32 among layers of float16."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer.float()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return cast(Tensor, self.layer(x.float())).to(x.dtype)


def _keep_float32(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, DeformConv2d):
            setattr(module, name, _Float32(child))
        else:
            _keep_float32(child)
