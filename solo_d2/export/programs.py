"""Files of exported graphs: traced once by torch.export, written in one of several formats.

Batch, height and width are dynamic: H and W are multiples of the backbone's divisor. "torch-export"
and "aoti" require at least three times the divisor, because torch specializes sizes of 1, which
would occur in the coarsest feature; "onnx" has no such limit.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from solo_d2.export.onnx_model import load_detector, require_packages
from solo_d2.export.pipeline import Detections, ExportPipeline, SoftDetections
from solo_d2.export.runner import INPUTS, Arrays, Detector, ModelInfo
from solo_d2.modeling.meta_arch.solo import SOLO
from solo_d2.utils.errors import ConfigError
from solo_d2.utils.user_code import from_user_code, note_part

# The first opset with the current GridSample, for deformable convolutions.
OPSET = 20
# Earlier versions fail at divisions by a dynamic size.
OLDEST_TORCH = "2.7"
METADATA_FILE = "metadata.json"


@dataclass(frozen=True)
class Export:
    """A traced pipeline, its metadata and the names of its outputs."""

    program: ExportedProgram
    info: ModelInfo
    outputs: tuple[str, ...]


def describe(
    model: SOLO, pipeline: ExportPipeline, cfg: CfgNode, names: list[str], ids: list[Any]
) -> ModelInfo:
    """Return the metadata of a model.

    Args:
        model: the model.
        pipeline: pipeline of the model.
        cfg: config of the model; INPUT is read.
        names: names of the classes.
        ids: category ids of the classes.
    """
    return ModelInfo(
        class_names=list(names),
        class_ids=list(ids),
        input_format=cfg.INPUT.FORMAT,
        pixel_mean=pipeline.pixel_mean.flatten().tolist(),
        pixel_std=pipeline.pixel_std.flatten().tolist(),
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        size_divisor=max(model.backbone.size_divisibility, 1),
        square_size=model.backbone.padding_constraints.get("square_size", 0),
        mask_stride=pipeline.mask_stride,
        soft_masks=pipeline.soft_masks,
        precision=str(pipeline.dtype).removeprefix("torch."),
        topk=pipeline.topk,
        pre_nms_topk=pipeline.pre_nms_topk,
        max_detections=pipeline.max_detections,
        score_thresh=pipeline.score_thresh,
        mask_thresh=pipeline.mask_thresh,
        keep_thresh=pipeline.keep_thresh,
    )


class _PlainTuple(nn.Module):
    """A pipeline with plain tuples as outputs, so that files do not depend on this package."""

    def __init__(self, pipeline: ExportPipeline):
        super().__init__()
        self.pipeline = pipeline

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.pipeline(*inputs))


@torch.no_grad()
def trace(pipeline: ExportPipeline, info: ModelInfo) -> Export:
    """Trace a pipeline with dynamic batch, input and output sizes.

    Raises:
        ConfigError: a part of the model cannot be traced, or torch is too old for it.
    """
    if torch.__version__ < OLDEST_TORCH:  # compared as versions
        raise ConfigError(f"Export requires torch {OLDEST_TORCH}; this is {torch.__version__}")
    # Sides without common properties, so that none are taken for equal by chance.
    height, width = (info.square_size or info.size_divisor * number for number in (4, 7))
    # A shared Dim requires equal sizes.
    batch = Dim("batch", min=1)
    sides: dict[int, Any] = {0: batch}
    if not info.square_size:
        sides[2] = info.size_divisor * Dim("height", min=3)
        sides[3] = info.size_divisor * Dim("width", min=3)
    inputs: list[tuple[Tensor, dict[int, Any]]] = [
        (torch.zeros(2, 3, height, width, dtype=torch.uint8), sides),
        (torch.tensor([[height - 3, width], [height, width - 5]]), {0: batch}),
        (torch.zeros(2, height + 7), {0: batch, 1: Dim("output_height", min=1)}),
        (torch.zeros(2, width + 9), {0: batch, 1: Dim("output_width", min=1)}),
    ]
    arguments, free = zip(*inputs[: 2 if pipeline.soft_masks else 4], strict=True)
    try:
        program = torch.export.export(
            _PlainTuple(pipeline), arguments, dynamic_shapes=(free,), strict=False
        )
    except Exception as error:  # torch raises many types for code that it cannot trace
        # Errors of torch's own types describe that code.
        if from_user_code(error) and not type(error).__module__.startswith("torch."):
            note_part(error, "The model cannot be traced")
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"The model cannot be traced: {lines[0]}") from error
    return Export(program, info, _outputs(info))


def _outputs(info: ModelInfo) -> tuple[str, ...]:
    return SoftDetections._fields if info.soft_masks else Detections._fields


def save_onnx(export: Export, path: Path) -> None:
    """Write an ONNX file."""
    require_packages("onnx", "onnxscript", "onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        onnx_program = torch.onnx.export(
            export.program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS[: 2 if export.info.soft_masks else 4]),
            output_names=list(export.outputs),
            verbose=False,
        )
    assert onnx_program is not None
    onnx_program.model.metadata_props.update(export.info.to_metadata())
    onnx_program.save(path)


def save_program(export: Export, path: Path) -> None:
    """Write a file for `torch.export.load`."""
    metadata = json.dumps(export.info.to_metadata())
    with open(path, "wb") as file:  # given a path, it raises no OSError for a full disk
        torch.export.save(export.program, file, extra_files={METADATA_FILE: metadata})


def save_aoti(export: Export, path: Path) -> None:
    """Compile a package for the CPU of this machine; requires a C++ compiler and takes minutes."""
    from torch._inductor import aoti_compile_and_package

    configs = {"aot_inductor.metadata": export.info.to_metadata()}
    with open(path, "wb") as file:  # as in `save_program`
        aoti_compile_and_package(export.program, package_path=file, inductor_configs=configs)


def load_program(path: Path) -> Detector:
    """Load a file of `save_program`."""
    files = {METADATA_FILE: ""}
    program = torch.export.load(path, extra_files=files)
    return _torch_detector(program.module(), json.loads(files[METADATA_FILE] or "{}"), path)


def load_aoti(path: Path) -> Detector:
    """Load a package of `save_aoti`."""
    from torch._inductor import aoti_load_package

    model = aoti_load_package(str(path))
    return _torch_detector(model, model.loader.get_metadata(), path)


def _torch_detector(graph: Callable[..., Any], metadata: dict[str, str], path: Path) -> Detector:
    info = ModelInfo.from_metadata(metadata, str(path))

    @torch.no_grad()
    def run(inputs: Arrays) -> Arrays:
        outputs = graph(*(torch.from_numpy(value) for value in inputs.values()))
        named = zip(_outputs(info), outputs, strict=True)
        return {name: value.numpy() for name, value in named}

    return Detector(run, info)


# Functions that write and load a file, by format name.
FORMATS: dict[str, tuple[Callable[[Export, Path], None], Callable[[Path], Detector]]] = {
    "onnx": (save_onnx, load_detector),
    "torch-export": (save_program, load_program),
    "aoti": (save_aoti, load_aoti),
}
EXTENSIONS = {"onnx": ".onnx", "torch-export": ".pt2", "aoti": ".pt2"}
