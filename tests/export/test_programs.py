"""Traced graphs and files: the same instances as the model's, at sizes that were not traced."""

import subprocess

import pytest
import torch

pytestmark = [pytest.mark.detectron2, pytest.mark.export]
pytest.importorskip("detectron2")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from solo_d2 import ConfigError  # noqa: E402
from solo_d2.export import packages, programs  # noqa: E402
from solo_d2.export.agreement import TOLERANCES, Agreement  # noqa: E402
from solo_d2.export.pipeline import ExportPipeline  # noqa: E402
from solo_d2.export.programs import (  # noqa: E402
    describe,
    load_aoti,
    load_onnx,
    load_program,
    save_aoti,
    save_onnx,
    save_program,
    trace,
)
from solo_d2.export.runner import Detector  # noqa: E402
from tests.export.models import (  # noqa: E402
    VARIANTS,
    assert_detector_agrees,
    assert_same,
    expected_of,
    images,
    small_config,
    small_model,
)


def trace_model(model, **options):
    pipeline = ExportPipeline(model, **options)
    names = ["a", "b", "c", "d", "e"]
    return trace(pipeline, describe(model, pipeline, small_config(), names, [1, 2, 3, 4, 5]))


@pytest.mark.xfail(strict=False, reason="equal scores may come in another order than the model's")
@pytest.mark.parametrize("variant", VARIANTS)
def test_traced_and_onnx_agree_with_the_model(variant, tmp_path):
    model = small_model(*VARIANTS[variant])
    export = trace_model(model)
    run = programs._run_torch(export.program.module(), export.info)
    assert_detector_agrees(model, Detector(run, export.info))
    save_onnx(export, tmp_path / "model.onnx")
    detector = load_onnx(tmp_path / "model.onnx")
    assert_detector_agrees(model, detector)
    # Below the sides that torch's own formats accept.
    image = images((20, 70))
    expected = expected_of(model, image, [(20, 70)])[0]
    assert_same(expected, detector.detect(image, [(20, 70)])[0])


@pytest.mark.xfail(strict=False, reason="equal scores may come in another order than the model's")
def test_onnx_file_is_standard_and_described(tmp_path):
    model = small_model("MODEL.SOLO.SCORE_THRESH_TEST", 0.9)
    export = trace_model(model, topk=123, soft_masks=True)
    save_onnx(export, tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert {opset.domain for opset in proto.opset_import} == {""}
    assert [value.name for value in proto.graph.input] == ["images", "image_sizes"]
    free = [d.dim_param for d in proto.graph.input[0].type.tensor_type.shape.dim]
    assert [bool(name) for name in free] == [True, False, True, True]
    detector = load_onnx(tmp_path / "model.onnx")
    assert detector.info == export.info
    assert (detector.info.topk, detector.info.class_ids) == (123, [1, 2, 3, 4, 5])
    assert_detector_agrees(model, detector)


def test_onnx_without_a_detection(tmp_path):
    model = small_model("MODEL.SOLO.SCORE_THRESH_TEST", 1.0)
    save_onnx(trace_model(model), tmp_path / "model.onnx")
    found = load_onnx(tmp_path / "model.onnx").detect(images((60, 80), (40, 40)), [(9, 7)] * 2)
    assert [one["masks"].shape for one in found] == [(0, 9, 7)] * 2


def test_half_onnx(tmp_path):
    model = small_model("MODEL.SOLO.SCORE_THRESH_TEST", 0.8)
    export = trace_model(model, half=True)
    save_onnx(export, tmp_path / "model.onnx")
    types = {tensor.data_type for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    detector = load_onnx(tmp_path / "model.onnx")
    assert detector.info.precision == "float16"
    batch = images((96, 128), (64, 100))
    sizes = [image.shape[:2] for image in batch]
    agreement = Agreement()
    results = zip(expected_of(model, batch, sizes), detector.detect(batch, sizes), strict=True)
    for expected, found in results:
        agreement.add(expected, found)
    assert agreement.matched > 20
    assert agreement.score_diff < TOLERANCES["float16"].score


@pytest.mark.xfail(strict=False, reason="torch cannot save a program that returns a named tuple")
def test_torch_program_file(tmp_path):
    model = small_model()
    export = trace_model(model)
    save_program(export, tmp_path / "model.pt2")
    detector = load_program(tmp_path / "model.pt2")
    assert detector.info == export.info
    assert_detector_agrees(model, detector)


@pytest.mark.slow
def test_compiled_package(tmp_path):
    """Compiles C++: about a minute."""
    if subprocess.run(["c++", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("needs a C++ compiler")
    model = small_model()
    export = trace_model(model)
    save_aoti(export, tmp_path / "model.pt2")
    detector = load_aoti(tmp_path / "model.pt2")
    assert detector.info == export.info
    assert_detector_agrees(model, detector)


def test_a_model_that_cannot_be_traced(tmp_path):
    model = small_model()

    class Branching(torch.nn.Module):
        size_divisibility, padding_constraints = 32, {}

        def forward(self, x):
            if x.sum() > 0:  # depends on the data
                return model.backbone(x)
            return model.backbone(-x)

    pipeline = ExportPipeline(model)
    pipeline.backbone = Branching()
    info = describe(model, pipeline, small_config(), [], [])
    with pytest.raises(ConfigError, match="cannot be traced"):
        trace(pipeline, info)


def test_missing_packages_are_named():
    packages.require_packages("onnx")
    with pytest.raises(ConfigError, match=r"nowhere and never.*solo_d2\[export\]"):
        packages.require_packages("onnx", "nowhere", "never")
