"""ONNX files of strangers: what cannot be is refused in one line."""

import importlib.metadata
from functools import partial

import numpy as np
import pytest

from solo_d2.utils.errors import ConfigError
from tests.export.test_runner import make_info

pytestmark = pytest.mark.detectron2


# Shapes of what a model gives and takes; None: any.
OUTPUTS = {
    "scores": ("FLOAT", [1, 1]),
    "classes": ("INT64", [1, 1]),
    "boxes": ("FLOAT", [1, 1, 4]),
    "masks": ("BOOL", [1, 1, 64, 64]),
    "num_detections": ("INT64", [1]),
    "num_candidates": ("INT64", [1]),
}
INPUTS = {
    "images": ("UINT8", [None, 3, None, None]),
    "image_sizes": ("INT64", [None, 2]),
    "rows": ("FLOAT", [None, None]),
    "columns": ("FLOAT", [None, None]),
}


@pytest.fixture(scope="module")
def onnx():
    pytest.importorskip("onnxruntime")
    return pytest.importorskip("onnx")


@pytest.fixture
def build(onnx, tmp_path):
    """Writes a.onnx: a graph with inputs, outputs and metadata of ours, that finds nothing."""
    return partial(write_model, onnx, tmp_path / "a.onnx")


def write_model(
    onnx, file, *, values=(), nodes=(), metadata=(), initializers=(), domain="", opset=20
):
    make, kind = onnx.helper, lambda name: getattr(onnx.TensorProto, name)
    values = dict(values)
    constants = [
        make.make_tensor(f"{name}_0", kind(of), shape, [values.get(name, 0)] * int(np.prod(shape)))
        for name, (of, shape) in OUTPUTS.items()
    ]
    inputs, outputs = (
        [make.make_tensor_value_info(name, kind(of), shape) for name, (of, shape) in given.items()]
        for given in (INPUTS, OUTPUTS)
    )
    copies = [make.make_node("Identity", [f"{name}_0"], [name]) for name in OUTPUTS]
    graph = make.make_graph(
        [*nodes, *copies], "graph", inputs, outputs, [*constants, *initializers]
    )
    opsets = [make.make_opsetid("", opset), *([make.make_opsetid(domain, 1)] if domain else [])]
    model = make.make_model(graph, opset_imports=opsets, ir_version=10)
    info = make_info(soft_masks=False, class_names=["a"], class_ids=[1])
    make.set_model_props(model, {**info.to_metadata(), **dict(metadata)})
    file.write_bytes(model.SerializeToString())
    return file


def find(file):
    from solo_d2.api.backends import OnnxBackend

    backend = OnnxBackend(file)
    return backend.run([backend.prepare(np.zeros((40, 50, 3), np.uint8))], None)


def assert_refused(file):
    """In one line, which has the name of the file."""
    with pytest.raises(ConfigError, match=rf"^[^\n]*{file.name}[^\n]*$") as caught:
        find(file)
    assert len(str(caught.value)) < 500 + len(str(file))
    return str(caught.value)


@pytest.mark.parametrize("number", [0, 1])
def test_the_friendly_model_works(build, number):
    assert len(find(build(values={"num_detections": number}))[0]["instances"]) == number


METADATA = [
    ("min_size", "1000000000"), ("square_size", "1000000"), ("size_divisor", "0"),
    ("size_divisor", "-32"), ("mask_stride", "0"), ("topk", "1e400"), ("min_size", "true"),
    ("class_names", "[]"), ("class_names", '["a", "b"]'), ("class_ids", '[true]'),
    ("class_names", "[" * 10**5), ("pixel_mean", "[NaN, 0, 0]"), ("input_format", '"../x"'),
    ("score_thresh", "NaN"), ("soft_masks", "1"), ("precision", "[]"), ("max_size", "9" * 5000),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), METADATA, ids=[f"{k} {v:.12}" for k, v in METADATA])
def test_metadata_that_cannot_be(build, key, value):
    assert_refused(build(metadata={key: value}))


@pytest.mark.parametrize("values", [{"classes": 7, "num_detections": 1}, {"classes": -1},
    {"num_detections": 2}, {"num_detections": -1}])  # fmt: skip
def test_outputs_that_cannot_be(build, values):
    with pytest.raises(ConfigError, match="metadata"):
        find(build(values=values))


@pytest.mark.parametrize("location", ["../secret", "../../../../../../etc/passwd", "/etc/passwd"])
def test_weights_in_other_files_do_not_leave_the_folder(onnx, tmp_path, location):
    version = importlib.metadata.version("onnxruntime").split(".")
    if [int(part) for part in version[:2]] < [1, 24]:
        pytest.skip("ONNX Runtime refuses them from 1.24 on")
    (tmp_path / "secret").write_bytes(b"top secret!!")
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.UINT8, [12], bytes(12), raw=True)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "12")):
        tensor.external_data.add(key=key, value=value)
    node = onnx.helper.make_node("Identity", ["w"], ["leaked"])
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "a.onnx"
    assert "secret!!" not in assert_refused(
        write_model(onnx, file, nodes=[node], initializers=[tensor])
    )


def test_operators_of_others_and_unknown_versions(onnx, build):
    node = onnx.helper.make_node("System", ["images"], ["x"], domain="evil.ops")
    assert_refused(build(nodes=[node], domain="evil.ops"))
    assert_refused(build(opset=10**6))


@pytest.mark.parametrize("content", [b"hello", b"", bytes(1000)])
def test_what_is_no_model(onnx, tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    assert_refused(tmp_path / "a.onnx")
