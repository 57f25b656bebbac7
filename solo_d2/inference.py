"""Inference from head outputs to instances, shared by all heads.

Candidates -> masks -> maskness -> cut (pre-NMS top-k) -> mask NMS -> keep -> paste: the methods of
`MaskDecoder`. The cut happens early where this cannot change the result, see `score_masks`. Memory
does not depend on the number of objects, see `MaskDecoder`.

On CUDA the same steps run with fixed shapes, so that the host does not synchronize: candidates with
score 0 are no instances and keep their places ("lanes") until the end, see `MaskDecoder.decode`.

Scores and boxes are finite even if predictions contain infinity or NaN: a NaN probability is above
no threshold, and instances with NaN pixels are dropped.

Contours (SOLO, arXiv:1912.04488, section 6) are filled when they are computed, processed as masks,
and converted back to contours after the final resize. Thin contours could not be compared:
duplicates one pixel apart hardly overlap.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from solo_d2.ops.binary_masks import BinaryMasks, binarize_chunks, binarize_product, mask_scores
from solo_d2.ops.candidates import class_probabilities, filter_scores, score_keys, top_scores
from solo_d2.ops.cell_masks import fixed_cell_masks
from solo_d2.ops.contours import contour_masks, fill_contours
from solo_d2.ops.fast_nms import fast_nms
from solo_d2.ops.hard_nms import hard_nms
from solo_d2.ops.host_copies import to_host
from solo_d2.ops.mask_factors import multiply_factors, resize
from solo_d2.ops.mask_iou import MaskRows
from solo_d2.ops.matrix_nms import matrix_nms
from solo_d2.ops.nms_family import call_nms
from solo_d2.ops.paste_masks import new_masks, paste_masks
from solo_d2.ops.soft_nms import soft_nms
from solo_d2.ops.threads import one_thread
from solo_d2.structures import Candidates, GridCells, HeadOutputs, MaskHead, Predictions

# Each NMS maps (masks, labels, scores, *, parameters) to new scores; 0 removes. Its parameters are
# read from the keys of MODEL.SOLO.NMS with the same names.
NMS: dict[str, Callable[..., Tensor]] = {
    "matrix": matrix_nms,
    "hard": hard_nms,
    "soft": soft_nms,
    "fast": fast_nms,
}

# Height and width of an image in the padded input, and of its masks in the output.
ImageSizes = tuple[tuple[int, int], tuple[int, int]]

# Elements of the soft masks that are computed at once (24 MiB as float32): large enough for a fast
# product, small enough for the host's allocator to reuse the memory.
MASK_CHUNK_ELEMENTS = 6 << 20
# The same with fixed shapes on a GPU, which needs few large steps (256 MiB).
FIXED_CHUNK_ELEMENTS = 64 << 20


def build_nms(name: str, params: Mapping[str, Any]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Select a mask NMS and set its parameters.

    Args:
        name: a key of `NMS`.
        params: parameters by name; those that the NMS does not have are ignored.

    Returns:
        `f(masks, labels, scores) -> new scores`.
    """
    if name not in NMS:
        raise ValueError(f"unknown mask NMS {name!r}: choose one of {', '.join(sorted(NMS))}")
    taken = inspect.signature(NMS[name]).parameters
    return partial(NMS[name], **{key: params[key] for key in params if key in taken})


@dataclass(frozen=True)
class MaskDecoder:
    """Decode head outputs into instances.

    Besides the results (one byte per pixel), an image takes on the CPU the memory of at most
    min(4 * `pre_nms_topk`, `pre_nms_topk` + number of candidates) binary masks, one byte per pixel;
    2 * 24 MiB of probabilities (or of one mask, if larger) and what the head needs in addition; 8
    MiB per thread; and the memory of the NMS.

    Attributes:
        head: computes the masks; those with a single 1x1 factor are computed in tiles.
        cell_levels: (T,) int64, the level of each cell, on the device of the outputs.
        strides: (L,) float32, stride of each level's feature; also the minimum area of an instance
            in mask pixels, exclusive. On the device of the outputs.
        nms: `f(masks, labels, scores) -> new scores`.
        contours: whether the head predicts contours.
        backend: backend for thresholding and resizing masks: "auto" by device, "torch" (the
            reference), "tiled" or "triton".
        score_thresh: minimum class probability of a candidate, exclusive.
        mask_thresh: minimum probability of a mask's pixel, exclusive; at least 0.
        pre_nms_topk: maximum number of candidates that enter NMS.
        keep_thresh: minimum score after NMS, inclusive.
        max_detections: maximum number of instances of an image.
        lanes: number of candidates that are decoded with fixed shapes, at least `pre_nms_topk`; 0:
            shapes are never fixed.
        fixed: whether shapes are fixed: candidates with score 0 do not count and stay behind the
            others. None: in `decode` on CUDA only.
        run_lanes: wrapper of `decode_lanes` whose results the next call may overwrite, see
            `solo_d2.modeling.decode_graphs`; None: a direct call.
    """

    head: MaskHead
    cell_levels: Tensor
    strides: Tensor
    nms: Callable[[Tensor, Tensor, Tensor], Tensor]
    contours: bool = False
    backend: str = "auto"
    score_thresh: float = 0.1
    mask_thresh: float = 0.5
    pre_nms_topk: int = 500
    keep_thresh: float = 0.05
    max_detections: int = 100
    lanes: int = 1000
    fixed: bool | None = None
    run_lanes: Callable[..., tuple[list[Predictions], Tensor]] | None = None

    @torch.no_grad()
    def decode(
        self,
        outputs: HeadOutputs,
        image_sizes: Sequence[tuple[int, int]],
        output_sizes: Sequence[tuple[int, int]],
    ) -> list[Predictions]:
        """Find the instances of each image of a batch.

        With fixed shapes the host synchronizes once, after all images are decoded. An image with
        more candidates than lanes is decoded again, unless they can't change its result.

        Args:
            outputs: predictions of the head.
            image_sizes: height and width of each image inside the padded input.
            output_sizes: height and width of the masks of each image.

        Returns:
            One result per image; without instances, empty tensors with the right shape, dtype and
            device.
        """
        images = dict(enumerate(zip(image_sizes, output_sizes, strict=True)))
        on_cuda = self.cell_levels.device.type == "cuda"
        fixed = self.lanes > 0 and (on_cuda if self.fixed is None else self.fixed)
        if not fixed or not images or self.contours:  # contours are filled on the host
            return list(self._decode_eagerly(outputs, images).values())
        run_lanes = self.run_lanes or MaskDecoder.decode_lanes
        lanes, counts = run_lanes(replace(self, fixed=True), outputs, list(images.values()))
        numbers, copy = to_host([counts])[0].tolist(), self.run_lanes is not None
        again = {image: both for image, both in images.items() if numbers[image] < 0}
        eager = self._decode_eagerly(outputs, again)
        return [eager[i] if i in eager else lanes[i].first(numbers[i], copy=copy) for i in images]

    def _decode_eagerly(
        self, outputs: HeadOutputs, images: Mapping[int, ImageSizes]
    ) -> dict[int, Predictions]:
        """Decode some images of the batch, in shapes that depend on the data."""
        if not images:
            return {}
        eager, results = replace(self, fixed=False), {}
        class_probs = class_probabilities(outputs.class_logits)
        for image, sizes in images.items():
            found = eager.find(outputs, image, class_probs[image])
            results[image] = eager.finish(outputs, image, found, *sizes)
        return results

    def decode_lanes(
        self, outputs: HeadOutputs, sizes: Sequence[ImageSizes]
    ) -> tuple[list[Predictions], Tensor]:
        """Decode with fixed shapes, for a decoder with `fixed`.

        Args:
            outputs: predictions of the head.
            sizes: size in the padded input and in the output, for each image.

        Returns:
            The best lanes of each image, and (B,) int64, how many of them are instances; -1 if
            candidates without a lane could be instances too.
        """
        num, results, counts = max(self.lanes, self.pre_nms_topk), [], []
        keys = score_keys(outputs.class_logits, self.score_thresh, backend=self.backend)
        for image, both in enumerate(sizes):
            num_classes = outputs.class_logits[0].shape[1]
            found = Candidates(*top_scores(keys[image], num_classes, num + 1))
            best = self._score_chunk(outputs, image, found.select(slice(0, num)))
            kept = self.suppress(best)
            results.append(self.finish(outputs, image, kept, *both))
            counts.append((kept.scores > 0).sum())
            if len(found) > num:  # as in `score_masks`
                counts[-1].masked_fill_(best.scores[-1] < found.scores[-1], -1)
        return results, torch.stack(counts)

    def find(self, outputs: HeadOutputs, image: int, class_probs: Tensor) -> Candidates:
        """Find the instances of an image, before their masks are resized.

        Args:
            outputs: predictions of the head.
            image: index of the image.
            class_probs: (T, K) float32, see `class_probabilities`.

        Returns:
            At most `max_detections` candidates by descending score.
        """
        found = Candidates(*filter_scores(class_probs, self.score_thresh))
        found = self.score_masks(outputs, image, found)
        return self.suppress(found)

    def score_masks(self, outputs: HeadOutputs, image: int, found: Candidates) -> Candidates:
        """Compute masks, drop tiny ones, multiply scores by the maskness, keep the best.

        The maskness, the mean probability over the pixels of the binary mask, is at most 1, so a
        score can't exceed its class score. Candidates are processed by descending class score, in
        chunks of 2 * `pre_nms_topk`, until no other can enter the best `pre_nms_topk`. The result
        equals that of computing all masks, in bounded memory.

        Args:
            outputs: predictions of the head.
            image: index of the image.
            found: candidates without masks, in any order.

        Returns:
            At most `pre_nms_topk` candidates with masks, by descending score; ties by class score,
            then in order.
        """
        found, step = found.best(len(found)), 2 * self.pre_nms_topk
        best = self._score_chunk(outputs, image, found.select(slice(0, step)))
        for start in range(step, len(found), step):
            # Rare (more candidates than enter NMS), and worth a synchronization.
            if len(best) == self.pre_nms_topk and bool(best.scores[-1] >= found.scores[start]):
                break
            chunk = found.select(slice(start, start + step))
            best = best.concatenate(self._score_chunk(outputs, image, chunk))
            best = best.best(self.pre_nms_topk)
        return best

    def _score_chunk(self, outputs: HeadOutputs, image: int, found: Candidates) -> Candidates:
        """Compute `score_masks` for few enough candidates to hold all their binary masks."""
        cells, mask_index = found.cells, None
        if not self.fixed:  # several classes of a cell share its mask
            cells, mask_index = cells.unique(return_inverse=True)
        masks, areas, soft_sums = self._binary_masks(outputs, image, cells)
        if mask_index is not None:
            areas, soft_sums = areas[mask_index], soft_sums[mask_index]
        least = self.strides[self.cell_levels[found.cells]]
        scores, spans = mask_scores(areas, soft_sums, found.scores, least, backend=self.backend)
        scores, index = scores.sort(descending=True, stable=True)
        scores, index = scores[: self.pre_nms_topk], index[: self.pre_nms_topk]
        if mask_index is not None:
            scores, index = scores[scores > 0], index[scores > 0]
        best = Candidates(found.cells[index], found.classes[index], scores)
        if mask_index is None:
            return replace(best, masks=masks, rows=MaskRows(index, spans))
        with one_thread():  # otherwise each row is split among the threads
            return replace(best, masks=masks.index_select(0, mask_index[index]))

    def _binary_masks(self, outputs: HeadOutputs, image: int, cells: Tensor) -> BinaryMasks:
        if len(set(self.head.mask_groups)) == 1 and not self.contours:
            factors = self.head.mask_factors(outputs, image, GridCells(cells))
            if factors and len(factors) == 1 and factors[0].is_product:
                feature = factors[0].maps[image]
                return binarize_product(
                    factors[0].kernels, feature, self.mask_thresh, backend=self.backend
                )
        chunks, shape = self.masks(outputs, image, cells), (len(cells), *outputs.mask_size)
        return binarize_chunks(chunks, shape, self.mask_thresh, cells.device, backend=self.backend)

    def suppress(self, found: Candidates) -> Candidates:
        """Run mask NMS, then the final score filter and cut.

        Args:
            found: candidates with masks, by descending score.

        Returns:
            At most `max_detections` candidates by descending decayed score.
        """
        assert found.masks is not None
        scores = call_nms(self.nms, found.masks, found.classes, found.scores, found.rows)
        scores = scores.masked_fill(~((scores >= self.keep_thresh) & (found.scores > 0)), 0)
        best = Candidates(found.cells, found.classes, scores).best(self.max_detections)
        return best if self.fixed else best.select(best.scores > 0)

    def finish(
        self,
        outputs: HeadOutputs,
        image: int,
        found: Candidates,
        image_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> Predictions:
        """Recompute the masks of instances, which are not kept, and `paste` them."""
        mask_probs = self.masks(outputs, image, found.cells)
        return self.paste(found.scores, found.classes, mask_probs, image_size, output_size)

    def paste(
        self,
        scores: Tensor,
        classes: Tensor,
        mask_probs: Iterable[Tensor],
        image_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> Predictions:
        """Resize masks to the output size, threshold them, and compute their boxes.

        Args:
            scores: (M,) float32.
            classes: (M,) int64.
            mask_probs: the M masks at the finest stride over the padded input, float32, in chunks
                (M', H, W).
            image_size: height and width of the image inside the padded input.
            output_size: height and width of the output.

        Returns:
            The instances in the same order.
        """
        masks = new_masks(len(scores), output_size, scores.device, backend=self.backend)
        boxes = torch.zeros(len(scores), 4, device=masks.device)
        start = 0
        for probs in mask_probs:
            chunk = slice(start, start + len(probs))
            boxes[chunk] = paste_masks(
                probs,
                stride=min(self.head.mask_strides),
                image_size=image_size,
                thresh=self.mask_thresh,
                out=masks[chunk],
                backend=self.backend,
            )
            if self.contours:  # their boxes are those of the regions
                masks[chunk] = contour_masks(masks[chunk])
            start += len(probs)
        return Predictions(scores, classes, masks, boxes)

    def masks(self, outputs: HeadOutputs, image: int, cells: Tensor) -> Iterator[Tensor]:
        """Compute the masks of cells of all levels, in chunks.

        Args:
            outputs: predictions of the head.
            image: index of the image.
            cells: (P,) int64 in [0, T).

        Yields:
            (P', H, W) float32 probabilities at the finest mask stride; contours are filled.
        """
        most = FIXED_CHUNK_ELEMENTS if self.fixed else MASK_CHUNK_ELEMENTS
        size = max(1, most // (outputs.mask_size[0] * outputs.mask_size[1]))
        for chunk in cells.split(size):
            probs = self._cell_masks(outputs, image, chunk)
            yield fill_contours(probs, self.mask_thresh) if self.contours else probs

    def _cell_masks(self, outputs: HeadOutputs, image: int, cells: Tensor) -> Tensor:
        """Compute masks (P, H, W) float32 of cells of all levels."""
        groups = self.head.mask_groups
        if len(set(groups)) == 1:
            return self._group_masks(outputs, image, GridCells(cells))
        if self.fixed:  # heads without factors synchronize nevertheless
            probs = fixed_head_masks(self.head, outputs, cells[None], image)
            if probs is not None:
                return probs[0]
        group_of_cell = torch.tensor(groups, device=cells.device)[self.cell_levels[cells]]
        masks = torch.empty(len(cells), *outputs.mask_size, device=cells.device)
        for group in sorted(set(groups)):
            index = (group_of_cell == group).nonzero()[:, 0]
            if len(index):
                masks[index] = self._group_masks(outputs, image, GridCells(cells[index], group))
        return masks

    def _group_masks(self, outputs: HeadOutputs, image: int, cells: GridCells) -> Tensor:
        """Compute masks (P, H, W) float32 of cells of one group."""
        factors, size = self.head.mask_factors(outputs, image, cells), outputs.mask_size
        if factors:
            return multiply_factors([f.of_image(image).to_float32() for f in factors], size)
        return resize(self.head.masks(outputs, image, cells)[None], size)[0].float()


def fixed_head_masks(
    head: MaskHead, outputs: HeadOutputs, cells: Tensor, image: int | None = None
) -> Tensor | None:
    """Compute `fixed_cell_masks` (B, M, H, W) of a head, for one image if it is given."""
    return fixed_cell_masks(
        lambda i, index, group: head.mask_factors(outputs, i, GridCells(index, group)),
        cells,
        sides=[logits.shape[-1] for logits in outputs.class_logits],
        mask_groups=head.mask_groups,
        mask_strides=head.mask_strides,
        mask_size=outputs.mask_size,
        image=image,
    )
