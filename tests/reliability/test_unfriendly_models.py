"""ONNX files of strangers: what cannot be is refused in one line."""

import importlib.metadata
import os
import pickle

import numpy as np
import pytest

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from solo_d2.utils.errors import ConfigError  # noqa: E402


class Danger:
    """Makes a folder when it is unpickled."""

    def __init__(self, target, call=os.mkdir):
        self.made = call, (str(target),)

    def __reduce__(self):
        return self.made


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory):
    """A graph with the inputs, outputs and metadata of ours, that finds nothing."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    kinds = {
        "scores": (TensorProto.FLOAT, [1, 1]),
        "classes": (TensorProto.INT64, [1, 1]),
        "boxes": (TensorProto.FLOAT, [1, 1, 4]),
        "masks": (TensorProto.BOOL, [1, 1, 64, 64]),
        "num_detections": (TensorProto.INT64, [1]),
        "num_candidates": (TensorProto.INT64, [1]),
    }
    inputs = {
        "images": (TensorProto.UINT8, [None, 3, None, None]),
        "image_sizes": (TensorProto.INT64, [None, 2]),
        "rows": (TensorProto.FLOAT, [None, None]),
        "columns": (TensorProto.FLOAT, [None, None]),
    }

    def build(file, *, classes=0, count=0, nodes=(), metadata=(), initializers=(), domain=""):
        values = {"classes": classes, "num_detections": count}
        made = [
            helper.make_tensor(name, kind, shape, [values.get(name, 0)] * int(np.prod(shape)))
            for name, (kind, shape) in kinds.items()
        ]
        constants = [helper.make_node("Identity", [f"{t.name}_0"], [t.name]) for t in made]
        for tensor in made:
            tensor.name += "_0"
        graph = helper.make_graph(
            [*nodes, *constants],
            "graph",
            [helper.make_tensor_value_info(name, *given) for name, given in inputs.items()],
            [helper.make_tensor_value_info(name, *given) for name, given in kinds.items()],
            [*made, *initializers],
        )
        versions = {"": 20, **({domain: 1} if domain else {})}
        opsets = [helper.make_opsetid(*version) for version in versions.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        helper.set_model_props(model, {**good_metadata(), **dict(metadata)})
        file.write_bytes(model.SerializeToString())
        return file

    return onnx, build


def good_metadata():
    from tests.export.test_runner import make_info

    return make_info(soft_masks=False, class_names=["a"], class_ids=[1]).to_metadata()


def find(file):
    from solo_d2.api.backends import OnnxBackend

    backend = OnnxBackend(file)
    image = np.zeros((40, 50, 3), np.uint8)
    return backend.run([backend.prepare(image)], None)


def test_the_friendly_model_works(onnx_model, tmp_path):
    assert len(find(onnx_model[1](tmp_path / "a.onnx"))[0]["instances"]) == 0
    assert len(find(onnx_model[1](tmp_path / "b.onnx", count=1))[0]["instances"]) == 1


METADATA = [
    ("min_size", "1000000000"), ("square_size", "1000000"), ("size_divisor", "0"),
    ("size_divisor", "-32"), ("mask_stride", "0"), ("topk", "1e400"), ("min_size", "true"),
    ("class_names", "[]"), ("class_names", '["a", "b"]'), ("class_ids", '[true]'),
    ("class_names", "[" * 10**5), ("pixel_mean", "[NaN, 0, 0]"), ("input_format", '"../x"'),
    ("score_thresh", "NaN"), ("soft_masks", "1"), ("precision", "[]"), ("max_size", "9" * 5000),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), METADATA, ids=[f"{k} {v:.12}" for k, v in METADATA])
def test_metadata_that_cannot_be(onnx_model, tmp_path, key, value):
    file = onnx_model[1](tmp_path / "a.onnx", metadata={key: value}.items())
    with pytest.raises(ConfigError) as caught:
        find(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("outputs", [{"classes": 7, "count": 1}, {"classes": -1}, {"count": 2},
    {"count": -1}])  # fmt: skip
def test_outputs_that_cannot_be(onnx_model, tmp_path, outputs):
    with pytest.raises(ConfigError, match="do not fit its metadata"):
        find(onnx_model[1](tmp_path / "a.onnx", **outputs))


@pytest.mark.parametrize("location", ["../secret", "../../../../../../etc/passwd", "/etc/passwd"])
def test_weights_in_other_files_do_not_leave_the_folder(onnx_model, tmp_path, location):
    onnx, build = onnx_model
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
    file = build(tmp_path / "model" / "a.onnx", nodes=[node], initializers=[tensor])
    with pytest.raises(ConfigError) as caught:
        find(file)
    assert "secret!!" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_operators_of_others_and_what_is_no_model(onnx_model, tmp_path):
    onnx, build = onnx_model
    node = onnx.helper.make_node("System", ["images"], ["x"], domain="evil.ops")
    files = [build(tmp_path / "domain.onnx", nodes=[node], domain="evil.ops")]
    for name, content in (("text", b"hello"), ("empty", b""), ("zeros", bytes(1000)),
        ("pickle", pickle.dumps(Danger(tmp_path / "made")))):  # fmt: skip
        files.append(tmp_path / f"{name}.onnx")
        files[-1].write_bytes(content)
    opset = onnx.load(str(build(tmp_path / "opset.onnx")))
    opset.opset_import[0].version = 10**6
    files.append(tmp_path / "opset.onnx")
    files[-1].write_bytes(opset.SerializeToString())
    for file in files:
        with pytest.raises(ConfigError) as caught:
            find(file)
        assert file.name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()
