"""Compare decoding, from head outputs to final masks, with plain PyTorch as in SOLOv2's paper.

Shape letters: M candidates, T cells of all levels, E channels of the mask feature, H and W its rows
and columns, K classes.

Both are timed alternately on the same outputs, whole and by stage. "plain" computes float masks of
all candidates and float32 overlaps, resizes all instances at once, encodes masks one by one with
pycocotools, and computes no boxes.
"""

import argparse
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from solo_d2.inference import MaskDecoder
from solo_d2.ops.backends import choose_backend
from solo_d2.ops.candidates import class_probabilities, filter_scores
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.ops.matrix_nms import matrix_nms
from solo_d2.ops.rle import encode_masks
from solo_d2.structures import Candidates, Predictions, cell_levels, take_cells
from tools.benchmarks.common import (
    add_common_arguments,
    begin,
    compare,
    parse_size,
    peak_memory,
    save,
    size_text,
    stage_table,
)
from tools.benchmarks.head_outputs import (
    NUM_GRIDS,
    KernelHead,
    KernelOutputs,
    make_outputs,
    to_device,
)
from tools.benchmarks.nms import plain_matrix_nms

Size = tuple[int, int]
# Published settings.
STRIDES, MASK_STRIDE = (8, 8, 16, 32, 32), 4
SCORE_THRESH, MASK_THRESH, PRE_NMS_TOPK, KEEP_THRESH, MAX_DETECTIONS = 0.1, 0.5, 500, 0.05, 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py postprocess`."""
    add = parser.add_argument
    add("--num", type=int, nargs="+", default=[600], help="number of candidates")
    add("--size", type=parse_size, default=(200, 304), help="of the mask feature (200x304)")
    add("--channels", type=int, default=256)
    add("--classes", type=int, default=80)
    add("--output-size", type=parse_size, nargs="+", default=[(800, 1216), (480, 640)])
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measure all combinations, print the tables, save the results."""
    machine = begin(args)
    cases = itertools.product(args.num, args.output_size)
    results = [_run_case(args, *case) for case in cases]
    print("\nmilliseconds: median (interquartile range); MiB: peak beyond the inputs")
    for result in results:
        found = result["found"]
        print(
            f"\n{result['num']} candidates, output "
            f"{size_text(result['output_size'])}: {found['instances']} instances; plain: "
            f"{found['pixels_that_differ']} pixels of {found['pixels']} differ, "
            f"{found['boxes_that_differ']} boxes, scores by "
            f"{found['largest_score_difference']:.1g}, classes equal: {found['classes_equal']}\n"
        )
        print(stage_table(result["stages"]))
    save(args, {"machine": machine, "results": results})


class Ours:
    """The stages of this project's decoder."""

    def __init__(self, device: torch.device, backend: str = "auto", *, product: bool = True):
        self.decoder = MaskDecoder(
            head=KernelHead([MASK_STRIDE] * len(NUM_GRIDS), has_factors=product),
            backend=backend,
            cell_levels=cell_levels(NUM_GRIDS, device),
            strides=torch.tensor(STRIDES, device=device).float(),
            nms=partial(matrix_nms, backend=backend),
        )

    def classes(self, outputs: KernelOutputs) -> Candidates:
        """Compute class probabilities and return the candidates."""
        return Candidates(
            *filter_scores(class_probabilities(outputs.class_logits)[0], SCORE_THRESH)
        )

    def masks(self, outputs: KernelOutputs, found: Candidates) -> Candidates:
        """Compute binary masks and mask scores; return the candidates that enter NMS."""
        return self.decoder.score_masks(outputs, 0, found)

    def nms(self, outputs: KernelOutputs, found: Candidates) -> Candidates:
        """Run NMS; return the instances."""
        return self.decoder.suppress(found)

    def resize(
        self, outputs: KernelOutputs, found: Candidates, image_size: Size, output_size: Size
    ) -> Predictions:
        """Return masks at the output size, and boxes."""
        probs = self.decoder.masks(outputs, 0, found.cells)
        return self.decoder.paste(found.scores, found.classes, probs, image_size, output_size)

    def rle(self, found: Predictions) -> list[dict[str, Any]]:
        """Return the encoded masks."""
        return encode_masks(found.masks)


class Plain:
    """The same stages as in the paper; `masks` keeps the soft masks for the resize."""

    def __init__(self, device: torch.device):
        self.strides = torch.tensor(STRIDES, device=device)[cell_levels(NUM_GRIDS, device)]

    def classes(self, outputs: KernelOutputs) -> Candidates:
        """Compute class probabilities and return the candidates."""
        probs = []
        for logits in outputs.class_logits:
            scores = logits.sigmoid()
            best = F.max_pool2d(scores, 2, stride=1, padding=1)[:, :, :-1, :-1]
            probs.append((scores * (best == scores))[0].flatten(1).T)
        scores = torch.cat(probs)
        cells, classes = (scores > SCORE_THRESH).nonzero(as_tuple=True)
        return Candidates(cells, classes, scores[cells, classes])

    def masks(self, outputs: KernelOutputs, found: Candidates) -> Candidates:
        """Compute soft masks of all candidates; return those that enter NMS."""
        kernels = take_cells(outputs.kernel_params, 0, found.cells)
        logits = kernels @ outputs.mask_feature[0].flatten(1)
        soft = logits.sigmoid().view(-1, *outputs.mask_size)
        masks = (soft > MASK_THRESH).float()
        areas = masks.sum((1, 2))
        keep = areas > self.strides[found.cells]
        soft, masks, areas = soft[keep], masks[keep], areas[keep]
        scores = found.scores[keep] * (soft * masks).sum((1, 2)) / areas
        order = scores.argsort(descending=True)[:PRE_NMS_TOPK]
        return Candidates(
            found.cells[keep][order], found.classes[keep][order], scores[order], soft[order]
        )

    def nms(self, outputs: KernelOutputs, found: Candidates) -> Candidates:
        """Run NMS; return the instances."""
        assert found.masks is not None
        masks = (found.masks > MASK_THRESH).float()
        _, scores = plain_matrix_nms(masks, found.classes, found.scores)
        keep = scores >= KEEP_THRESH
        kept = Candidates(found.cells[keep], found.classes[keep], scores[keep], found.masks[keep])
        return kept.select(kept.scores.argsort(descending=True)[:MAX_DETECTIONS])

    def resize(
        self, outputs: KernelOutputs, found: Candidates, image_size: Size, output_size: Size
    ) -> Predictions:
        """Return masks at the output size, without boxes."""
        assert found.masks is not None
        size = (MASK_STRIDE * outputs.mask_size[0], MASK_STRIDE * outputs.mask_size[1])
        soft = F.interpolate(found.masks[None], size=size, mode="bilinear", align_corners=False)
        soft = soft[:, :, : image_size[0], : image_size[1]]
        soft = F.interpolate(soft, size=output_size, mode="bilinear", align_corners=False)
        masks = soft[0] > MASK_THRESH
        return Predictions(found.scores, found.classes, masks, masks.new_zeros(len(masks), 4))

    def rle(self, found: Predictions) -> list[dict[str, Any]]:
        """Return the encoded masks."""
        import pycocotools.mask  # the rest runs without

        masks = found.masks.cpu().numpy()
        return [
            pycocotools.mask.encode(np.array(mask[:, :, None], order="F", dtype="uint8"))[0]
            for mask in masks
        ]


def decode(way: Ours | Plain, outputs: KernelOutputs, *sizes: Size) -> Predictions:
    """Run all stages up to the final masks; sizes are those of the image and of the output."""
    found = way.nms(outputs, way.masks(outputs, way.classes(outputs)))
    return way.resize(outputs, found, *sizes)


def stage_calls(
    way: Ours | Plain, outputs: KernelOutputs, *sizes: Size
) -> dict[str, Callable[[], Any]]:
    """Return each stage on the results of the previous one, and all up to the final masks."""
    found = way.classes(outputs)
    scored = way.masks(outputs, found)
    kept = way.nms(outputs, scored)
    final = way.resize(outputs, kept, *sizes)
    return {
        "classes": partial(way.classes, outputs),
        "masks": partial(way.masks, outputs, found),
        "NMS": partial(way.nms, outputs, scored),
        "resize": partial(way.resize, outputs, kept, *sizes),
        "all": partial(decode, way, outputs, *sizes),
        "RLE": partial(way.rle, final),
    }


def agreement(ours: Predictions, plain: Predictions) -> dict[str, Any]:
    """Compare the results of both."""
    if len(ours.scores) != len(plain.scores):
        raise RuntimeError(f"{len(ours.scores)} instances, but plain has {len(plain.scores)}")
    differences = (ours.scores - plain.scores).abs()
    return {
        "instances": len(ours.scores),
        "classes_equal": torch.equal(ours.classes, plain.classes),
        "largest_score_difference": float(differences.max()) if len(differences) else 0.0,
        "pixels": plain.masks.numel(),
        "pixels_that_differ": int((ours.masks != plain.masks).sum()),
        "boxes_that_differ": int((ours.boxes != mask_boxes(plain.masks)).any(dim=1).sum()),
    }


def _run_case(args: argparse.Namespace, num: int, output_size: Size) -> dict[str, Any]:
    outputs = make_outputs(num, args.size, args.channels, args.classes, num, args.seed)
    sizes = (MASK_STRIDE * args.size[0], MASK_STRIDE * args.size[1]), output_size
    inputs = to_device(outputs, args.device), *sizes
    ways: dict[str, Ours | Plain] = {"ours": Ours(args.device), "plain": Plain(args.device)}
    found = agreement(*(decode(way, *inputs) for way in ways.values()))
    # Measured before the inputs of the stages take memory.
    peaks = {k: peak_memory(partial(decode, way, *inputs), args.device) for k, way in ways.items()}
    calls = {name: stage_calls(way, *inputs) for name, way in ways.items()}
    stages = {
        stage: compare(
            {name: calls[name][stage] for name in ways},
            args,
            peak_bytes=peaks if stage == "all" else dict.fromkeys(ways),
        )
        for stage in calls["ours"]
    }
    return {
        "num": num,
        "size": list(args.size),
        "channels": args.channels,
        "classes": args.classes,
        "output_size": list(output_size),
        "backend": choose_backend("auto", args.device),
        "found": found,
        "stages": stages,
    }
