"""Opening ONNX files with ONNX Runtime or OpenVINO, without torch."""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

# Packages that can run a file, and their names.
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


class Session(NamedTuple):
    """A model that is ready to run.

    Attributes:
        run: maps arrays by input name to arrays by output name; may be called from several threads.
        inputs: names of the inputs.
        outputs: names of the outputs.
        metadata: the file's metadata.
    """

    run: Callable[[Arrays], Arrays]
    inputs: list[str]
    outputs: list[str]
    metadata: dict[str, str]


def open_session(
    path: str | Path,
    runtime: str = "onnxruntime",
    *,
    threads: int = 0,
    providers: Sequence[str] | None = None,
    properties: Mapping[str, Any] | None = None,
) -> Session:
    """Open an ONNX file.

    Args:
        path: the file.
        runtime: a key of `RUNTIMES`.
        threads: number of CPU threads; 0 lets the runtime choose.
        providers: ONNX Runtime's execution providers, best first; None for the CPU.
        properties: properties of OpenVINO's CPU device, such as "CACHE_DIR"; they override
            "INFERENCE_PRECISION_HINT": "f32".

    Raises:
        ValueError: the runtime is unknown or not installed, an option belongs to the other one, or
            the file is missing or cannot be loaded. `Session.run` raises it if the file cannot be
            run.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime is {runtime!r}; choose from {', '.join(RUNTIMES)}")
    options = {"onnxruntime": ("providers", providers), "openvino": ("properties", properties)}
    for owner, (name, value) in options.items():
        if value and owner != runtime:
            raise ValueError(
                f"{name} is an option of {RUNTIMES[owner]}, and runtime is {runtime!r}"
            )
    if find_spec(runtime) is None:
        raise ValueError(f"{RUNTIMES[runtime]} is not installed: pip install {runtime}")
    if not Path(path).is_file():
        raise ValueError(f"The model {path} does not exist")
    openers = {
        "onnxruntime": lambda: _open_onnxruntime(str(path), threads, providers),
        "openvino": lambda: _open_openvino(str(path), threads, properties or {}),
    }
    try:
        session = openers[runtime]()
    except Exception as error:  # both raise many types without a common base class
        raise ValueError(f"{path}: {RUNTIMES[runtime]} cannot load it: {_line(error)}") from error

    def run(inputs: Arrays) -> Arrays:
        try:
            return session.run(inputs)
        except Exception as error:
            name = RUNTIMES[runtime]
            raise ValueError(f"{path}: {name} cannot run it: {_line(error)}") from error

    return session._replace(run=run)


def _open_onnxruntime(path: str, threads: int, providers: Sequence[str] | None) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # no messages on graph optimization
    session = onnxruntime.InferenceSession(
        path, options, providers=list(providers or ["CPUExecutionProvider"])
    )
    outputs = [node.name for node in session.get_outputs()]
    return Session(
        run=lambda inputs: dict(zip(outputs, session.run(outputs, inputs), strict=True)),
        inputs=[node.name for node in session.get_inputs()],
        outputs=outputs,
        metadata=session.get_modelmeta().custom_metadata_map,
    )


@cache
def _openvino_libraries() -> tuple[Any, Any, Any]:
    """Return OpenVINO's core, frontend manager and ONNX frontend.

    They are kept until the process ends: without them, freeing a model crashes it.
    """
    import openvino
    from openvino.frontend import FrontEndManager

    manager = FrontEndManager()
    return openvino.Core(), manager, manager.load_by_framework("onnx")  # no other formats


def _open_openvino(path: str, threads: int, properties: Mapping[str, Any]) -> Session:
    core, _, frontend = _openvino_libraries()
    model = frontend.convert(frontend.load(path))
    # Without the hint, processors with AMX compute in bfloat16.
    settings = {"INFERENCE_PRECISION_HINT": "f32", **properties}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(model, "CPU", settings)
    request, lock = compiled.create_infer_request(), threading.Lock()

    def run(inputs: Arrays) -> Arrays:
        with lock:  # a request runs one batch at a time
            found = request.infer(inputs)
        return {output.any_name: value for output, value in found.items()}

    info = model.rt_info
    metadata = info["framework"] if "framework" in list(info) else {}
    return Session(
        run=run,
        inputs=[node.any_name for node in model.inputs],
        outputs=[node.any_name for node in model.outputs],
        metadata={key: metadata[key].astype(str) for key in metadata},
    )


def _line(error: Exception) -> str:
    """Return the message of a runtime on one line."""
    return " ".join(str(error).split())[:300]
