"""Quantization of exported ONNX files to 8-bit convolutions, for the CPU.

All convolutions of backbone and head are computed in integers (uint8 inputs, int8 weights with a
scale for each output channel). Norms, resizes and all steps after the head (scores, areas, mask
NMS, masks) stay in float32.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from solo_d2.export.onnx_model import load_detector, require_packages
from solo_d2.export.runner import Arrays
from solo_d2.utils.errors import ConfigError

# Default number of calibration images.
CALIBRATION_IMAGES = 64


def quantize_onnx(
    source: Path, target: Path, calibration: Iterable[Arrays] | None, *, reduce_range: bool = False
) -> None:
    """Write the 8-bit version of a float32 file.

    Args:
        source: float32 file of tools/export_model.py.
        target: the file to write.
        calibration: inputs of the graph (`Detector.graph_inputs`) that determine fixed scales of
            each convolution's input and output; None: the scale of its input is computed in each
            run ("dynamic"), which takes time, and its output is float32.
        reduce_range: whether to use 7-bit weights, for processors without VNNI instructions, whose
            sums of 8-bit products can overflow.

    Raises:
        ConfigError: a package is missing, the file cannot be read, is not float32 or has no
            convolution, or there are no calibration images.
    """
    require_packages("onnx", "onnxruntime")
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    precision = load_detector(source).info.precision
    if precision != "float32":
        raise ConfigError(f"{source} is of {precision}, but only float32 files can be quantized")
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        settings: dict[str, Any] = {
            "op_types_to_quantize": ["Conv"],
            "nodes_to_quantize": _convolutions(prepared, source),
            "per_channel": True,
            "reduce_range": reduce_range,
        }
        kinds = quantization.QuantType
        if calibration is None:  # ONNX Runtime's operator does not support signed weights
            quantization.quantize_dynamic(prepared, target, weight_type=kinds.QUInt8, **settings)
        else:
            # The mean of the images' extremes, since an outlier would make all steps coarser.
            settings["extra_options"] = {"CalibMovingAverage": True}
            types = {"activation_type": kinds.QUInt8, "weight_type": kinds.QInt8}
            reader = _Reader(calibration)
            quantization.quantize_static(prepared, target, reader, **types, **settings)
    import onnx

    model = onnx.load(str(target))
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    onnx.helper.set_model_props(model, metadata | {"precision": json.dumps("int8")})
    onnx.save(model, str(target))


def _convolutions(path: Path, source: Path) -> list[str]:
    """Return the names of the convolutions with constant weights."""
    import onnx

    graph = onnx.load(str(path)).graph
    constants = {tensor.name for tensor in graph.initializer}
    names = [x.name for x in graph.node if x.op_type == "Conv" and x.input[1] in constants]
    if not names:
        raise ConfigError(f"{source} has no convolution to quantize")
    return names


class _Reader:
    """Iterator over inputs with ONNX Runtime's interface, which returns None at the end."""

    def __init__(self, inputs: Iterable[Arrays]):
        self.inputs, self.count = iter(inputs), 0

    def get_next(self) -> Arrays | None:
        found = next(self.inputs, None)
        if found is None and self.count == 0:
            raise ConfigError("There is no image to calibrate on")
        self.count += 1
        return found
