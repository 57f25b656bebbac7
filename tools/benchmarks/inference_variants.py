"""Ways to run one model, for `benchmark.py inference`."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from solo_d2.api.classes import find_classes
from solo_d2.export.onnx_model import OnnxModel, detector_inputs
from solo_d2.export.packages import require_packages
from solo_d2.export.pipeline import ExportPipeline
from solo_d2.export.programs import describe, save_onnx, trace
from solo_d2.export.quantization import load_detector, quantize_onnx
from solo_d2.export.runner import Arrays
from solo_d2.modeling.speed import SpeedOptions, speed_up
from tools.benchmarks.inference import EAGER, ONNX, speed_options

# Detectron2's inputs to its outputs.
Model = Callable[[list[dict[str, Any]]], Any]


@dataclass
class VariantBuilder:
    """Makes the variants of a model.

    Attributes:
        cfg: of the model.
        model: the model, in eval mode; it stays as it is.
        folder: where exported files go.
        calibration: gives Detectron2's inputs from which 8-bit scales are taken, in batches.
    """

    cfg: Any
    model: Any
    folder: Path
    calibration: Callable[[], Iterable[list[dict[str, Any]]]]

    def make(self, name: str) -> Model:
        """Make a variant.

        Raises:
            ConfigError: it is not to be had here.
        """
        if name == EAGER:
            return self.model
        if name not in ONNX:
            return speed_up(copy.deepcopy(self.model), SpeedOptions(**speed_options(name)))
        return OnnxModel(load_detector(self.onnx_file(name), threads=torch.get_num_threads()))

    def onnx_file(self, name: str) -> Path:
        """The file of a variant of `ONNX`, made where it is missing."""
        path = self.folder / f"{name}.onnx"
        if path.exists():
            return path
        if name in ("onnx", "onnx-fp16"):
            self._export(path, half=name == "onnx-fp16")
        else:
            calibration = None if name == "onnx-int8-dynamic" else self._graph_inputs
            quantize_onnx(self.onnx_file("onnx"), path, calibration)
        return path

    def _export(self, path: Path, *, half: bool) -> None:
        require_packages("onnx", "onnxscript", "onnxruntime")  # before a minute of work
        pipeline = ExportPipeline(self.model, half=half)
        classes = find_classes(self.cfg)
        info = describe(self.model, pipeline, self.cfg, classes.names, classes.json_ids)
        save_onnx(trace(pipeline, info), path)

    @cached_property
    def _graph_inputs(self) -> list[Arrays]:
        detector = load_detector(self.onnx_file("onnx"))
        return [detector.graph_inputs(*detector_inputs(batch)) for batch in self.calibration()]
