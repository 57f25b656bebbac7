"""Inference from an image file to masks that are encoded and drawn, whole and stage by stage.

For `benchmark.py report`. Stages are timed by wrapping the functions that the model itself calls,
for one run: what is timed is what runs, and without the wraps nothing is slower.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solo_d2 import inference
from solo_d2.api.backends import model_input
from solo_d2.api.images import read_image
from solo_d2.export.pixels import input_size
from solo_d2.ops.mask_factors import multiply_factors
from solo_d2.ops.rle import encode_masks
from solo_d2.structures import GridCells
from solo_d2.visualization.overlay import draw_instances
from tools.benchmarks.common import Stopwatch
from tools.benchmarks.complexity import count_multiply_adds
from tools.benchmarks.mask_rcnn_reference import Stage, parts_of_network

OTHER = "other"
# In the order of the work.
STAGES = (
    "decode",
    "resize",
    "normalise, pad",
    "backbone",
    "head",
    "semantic branch",
    "masks",
    "NMS",
    "resize of masks",
    "panoptic merge",
    "RLE",
    "drawing",
    OTHER,
)


@dataclass
class Pipeline:
    """From files to results, with a model in eval mode."""

    cfg: Any
    model: Any
    class_names: Sequence[str]
    short_side: int  # INPUT.MIN_SIZE_TEST, 0 to leave images as they are
    long_side: int  # INPUT.MAX_SIZE_TEST
    size: tuple[int, int] | None  # height and width of all images instead
    functions: Sequence[Stage]

    @torch.no_grad()
    def run(self, files: Sequence[Path]) -> list[Any]:
        """Everything, for a batch of files; the results are Detectron2's Instances."""
        images = [self.decode(file) for file in files]
        outputs = self.model([self.resize(image) for image in images])
        found = [output["instances"] for output in outputs]
        for image, instances in zip(images, found, strict=True):
            self.encode(instances)
            self.draw(image, instances)
        return found

    def run_staged(self, files: Sequence[Path]) -> dict[str, float]:
        """The same; returns the seconds of each stage, of which `OTHER` is what is left."""
        stopwatch = Stopwatch(torch.device(self.cfg.MODEL.DEVICE))
        own = [("decode", "decode"), ("resize", "resize"), ("RLE", "encode"), ("drawing", "draw")]
        functions = [*self.functions, *((stage, self, name) for stage, name in own)]
        with ExitStack() as stack:
            for stage, owner, name in functions:
                timed = stopwatch.running(stage)(getattr(owner, name))
                stack.enter_context(patch.object(owner, name, timed))
            with stopwatch.running(OTHER):
                self.run(files)
        return stopwatch.seconds

    def decode(self, file: Path) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB of a file."""
        return read_image(file)

    def resize(self, image: NDArray[np.uint8]) -> dict[str, Any]:
        """The model's input."""
        height, width = image.shape[:2]
        size = self.size or input_size((height, width), self.short_side, self.long_side)
        return model_input(image, size, self.cfg.INPUT.FORMAT)

    def encode(self, instances: Any) -> list[dict[str, Any]]:
        """Masks as COCO's RLE."""
        return encode_masks(instances.pred_masks)

    def draw(self, image: NDArray[np.uint8], instances: Any) -> NDArray[np.uint8]:
        """The overlay for video."""
        contours = self.cfg.MODEL.SOLO.MASK_TARGET == "contour"
        return draw_instances(image, instances, self.class_names, contours=contours)


def stage_functions(model: Any) -> list[Stage]:
    """Where inference of a SOLO, with any head, spends its time."""
    decoder = inference.MaskDecoder
    functions = [
        ("normalise, pad", model, "preprocess_image"),
        ("backbone", model.backbone, "forward"),
        ("head", model.head, "forward"),
        ("masks", inference, "class_probabilities"),
        ("masks", inference, "filter_scores"),
        ("masks", inference, "top_scores"),
        ("masks", decoder, "_score_chunk"),
        ("NMS", decoder, "suppress"),
        ("resize of masks", decoder, "paste"),
    ]
    if hasattr(model, "semantic_branch"):
        functions.append(("semantic branch", model.semantic_branch, "forward"))
        functions.append(("panoptic merge", model, "combine"))
    return functions


def model_size(pipeline: Pipeline, file: Path, *, reference: bool) -> dict[str, Any]:
    """Parameters and multiply-adds for an image file, see `tools.benchmarks.complexity`.

    "multiply_adds" are those of the image whatever is in it, "multiply_adds_of_objects" the most
    that its objects take: the masks of the candidates that enter mask NMS, or (of a Mask R-CNN,
    the `reference`) the box heads of all proposals and the mask heads of all instances.
    """
    image = pipeline.resize(pipeline.decode(file))
    shape = pipeline.model.preprocess_image([image]).tensor.shape
    model, cfg = copy.deepcopy(pipeline.model).to("meta"), pipeline.cfg
    images = torch.empty(shape, device="meta")
    if reference:
        number = cfg.MODEL.RPN.POST_NMS_TOPK_TEST
        parts = parts_of_network(model, number, cfg.TEST.DETECTIONS_PER_IMAGE)
    else:
        parts = model.network, _masks_of_candidates(model, images, cfg.MODEL.SOLO.PRE_NMS_TOPK)
    of_image, of_objects = (count_multiply_adds(part, images) for part in parts)
    return {
        "parameters": sum(parameter.numel() for parameter in pipeline.model.parameters()),
        "input_size": list(shape[-2:]),
        "multiply_adds": of_image,
        "multiply_adds_of_objects": of_objects,
    }


def _masks_of_candidates(model: Any, images: Tensor, number: int) -> Callable[[Tensor], Any]:
    """The head's masks of some cells, without the network before them."""
    with torch.no_grad():
        outputs = model.network(images).head
    cells = GridCells(torch.zeros(number, dtype=torch.int64, device=images.device))
    factors = [factor.of_image(0) for factor in model.head.mask_factors(outputs, 0, cells)]
    return lambda images: multiply_factors(factors, outputs.mask_size)
