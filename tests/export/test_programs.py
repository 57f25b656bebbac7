"""Traced graphs and files: the same instances as the model's, at sizes that were not traced."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from solo_d2 import ConfigError
from solo_d2.export.onnx_model import load_detector, require_packages
from solo_d2.export.pipeline import ExportPipeline
from solo_d2.export.programs import (
    Export,
    describe,
    load_aoti,
    load_program,
    save_aoti,
    save_onnx,
    trace,
)
from solo_d2.export.runner import Detector
from solo_d2.modeling.layers import DeformConv2d
from tests.export.models import (
    IDS,
    NAMES,
    assert_detector_agrees,
    assert_same,
    expected_of,
    images,
    small_config,
    small_model,
)
from tests.export.test_runner import make_info
from tests.growth import MIB, growth

pytestmark = [pytest.mark.detectron2, pytest.mark.export]


# Heads that are exported together, with all ways to make masks: 1x1 and 3x3 kernels, masks of each
# level or of all, products of maps. Other heads and mask features differ in nothing that is traced.
ONE_LEVEL = (
    *("MODEL.SOLO.IN_FEATURES", ["p2"], "MODEL.SOLO.STRIDES", [8]),
    *("MODEL.SOLO.NUM_GRIDS", [8], "MODEL.SOLO.SCALE_RANGES", [[1, 512]]),
)
HEADS = {
    "solo": ["MODEL.SOLO.HEAD.NAME", "SOLOHead"],
    "decoupled": [
        *("MODEL.SOLO.HEAD.NAME", "DecoupledSOLOHead", "MODEL.SOLO.HEAD.ALIGN", "region_grid"),
        *ONE_LEVEL,
    ],
    "solov2 in float16": ["MODEL.SOLO.HEAD.KERNEL_SIZE", 3, *ONE_LEVEL],
}
# For the compiler: quick rather than good code.
QUICK = {
    "aot_inductor.debug_compile": True,
    "aot_inductor.precompile_headers": False,
    "cpp.vec_isa_ok": False,
}


class Gallery(nn.Module):
    """What differs between the pipelines of heads, in one graph: an export of each takes long."""

    soft_masks = True  # the inputs are those of such a pipeline

    def __init__(self, pipelines):
        super().__init__()
        self.pipelines = nn.ModuleList(pipelines)
        # Of many nodes; one stands for all.
        self.deform = DeformConv2d(32, 4, 3, padding=1, modulated=True)
        for parameter in self.deform.parameters():
            nn.init.normal_(parameter, std=0.01)

    def forward(self, images, image_sizes):
        """A deformable convolution; class logits (B, K, T) and some cells' masks of each head."""
        first = self.pipelines[0]
        features = first.backbone(first.normalise(images, image_sizes))
        results = [self.deform(features["p3"])]
        for pipeline in self.pipelines:
            inputs = {name: feature.to(pipeline.dtype) for name, feature in features.items()}
            outputs = pipeline.head(inputs)
            cells = torch.arange(3, len(pipeline.cell_strides), 7).expand(images.shape[0], -1)
            results.append(torch.cat([x.flatten(2) for x in outputs.class_logits], 2).float())
            results.append(pipeline.cell_masks(outputs, cells))
        return tuple(results)


def test_every_head_in_onnx(tmp_path, monkeypatch):
    """The steps after the heads are the same for all: `exported` has them, and is optimised."""
    monkeypatch.setattr(torch.onnx, "export", partial(torch.onnx.export, optimize=False))
    onnx, onnxruntime = (pytest.importorskip(name) for name in ("onnx", "onnxruntime"))
    pytest.importorskip("onnxscript")
    models = {name: small_model(*overrides) for name, overrides in HEADS.items()}
    gallery = Gallery(ExportPipeline(x, half="float16" in name) for name, x in models.items())
    info = describe(models["solo"], gallery.pipelines[0], small_config(), NAMES, IDS)
    info = replace(info, soft_masks=True)
    names = ["deform", *(f"{kind} of {name}" for name in models for kind in ("classes", "masks"))]
    save_onnx(replace(trace(gallery, info), outputs=names), tmp_path / "heads.onnx")
    types = {tensor.data_type for tensor in onnx.load(tmp_path / "heads.onnx").graph.initializer}
    assert {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16} <= types
    session = onnxruntime.InferenceSession(tmp_path / "heads.onnx")
    rng = np.random.default_rng(0)
    for sizes, padded in (([(61, 150)], (64, 160)), ([(190, 100), (140, 128)], (192, 128))):
        inputs = {
            "images": rng.integers(0, 256, (len(sizes), 3, *padded), dtype=np.uint8),
            "image_sizes": np.array(sizes),
        }
        found = dict(zip(names, session.run(names, inputs), strict=True))
        with torch.no_grad():
            results = gallery(*(torch.from_numpy(value) for value in inputs.values()))
        for name, expected in zip(names, results, strict=True):
            # Logits of float16 have a dozen bits, of which rounding takes some.
            atol = 0.05 if "float16" in name else 2e-4
            np.testing.assert_allclose(found[name], expected.numpy(), 0, atol, err_msg=name)


def test_onnx_agrees_with_the_model(exported):
    detector = load_detector(exported.onnx)
    assert_detector_agrees(exported.model, detector)
    # Below the sides that torch's own formats accept.
    image = images((20, 70))
    expected = expected_of(exported.model, image, [(20, 70)])[0]
    assert_same(expected, detector.detect(image, [(20, 70)])[0])


def test_onnx_file_is_standard_and_described(exported):
    import onnx

    proto = onnx.load(exported.onnx)
    onnx.checker.check_model(proto, full_check=True)
    assert {opset.domain for opset in proto.opset_import} == {""}
    names = [value.name for value in proto.graph.input]
    assert names == ["images", "image_sizes", "rows", "columns"]
    free = [d.dim_param for d in proto.graph.input[0].type.tensor_type.shape.dim]
    assert [bool(name) for name in free] == [True, False, True, True]
    info = load_detector(exported.onnx).info
    assert info.class_names == [f"thing {index}" for index in range(5)]
    assert (info.min_size, info.max_size, info.size_divisor) == (96, 160, 32)
    assert (info.topk, info.max_detections, info.precision) == (500, 50, "float32")


def test_onnx_leaves_no_memory_behind_and_many_threads_get_what_one_gets(exported):
    detector = load_detector(exported.onnx, threads=1)
    pictures = images((70, 100), (120, 90), (33, 50), (1, 1), (160, 40))
    expected = [detector([picture])[0] for picture in pictures]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda picture: detector([picture])[0], pictures * 8))
    for result, one in zip(found, expected * 8, strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(result[name], value)
    if Path("/proc/self/statm").exists():
        assert growth(lambda n: detector([pictures[n % 5]]), 300) < 4 * MIB


@pytest.mark.reliability
def test_onnx_leaves_no_memory_behind_in_the_long_run(exported):
    detector, pictures = load_detector(exported.onnx, threads=1), images((70, 100), (33, 50))
    assert growth(lambda n: detector([pictures[n % 2]]), 10_000) < 16 * MIB


def test_torch_program_file(exported):
    detector = load_program(exported.program)
    assert detector.info == load_detector(exported.onnx).info
    assert_detector_agrees(exported.model, detector)


def compile_and_load(program, info, path):
    if subprocess.run(["c++", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("needs a C++ compiler")
    import torch._inductor.config

    with torch._inductor.config.patch(QUICK):
        save_aoti(Export(program, info, ()), path)
    return load_aoti(path)


@pytest.mark.slow
def test_compiled_package(tmp_path):
    """A small graph; `make reliability` compiles a model, which takes a minute."""

    class Shifted(nn.Module):
        def forward(self, images, image_sizes):
            count = image_sizes[:, 0]
            scores = images[:, :1, 0, 0] / 255 + 0.5
            return scores, count[:, None] % 1, images[:, :1, ::4, ::4] / 255, count // count, count

    info = make_info(soft_masks=True, max_detections=1)
    image = images((32, 64))
    inputs = Detector(None, info).graph_inputs(image, [(32, 64)])
    program = torch.export.export(Shifted(), tuple(map(torch.from_numpy, inputs.values())))
    detector = compile_and_load(program, info, tmp_path / "model.pt2")
    assert detector.info == info
    (found,) = detector.detect(image, [(32, 64)])
    np.testing.assert_allclose(found["scores"], image[0][0, 0, 0] / 255 + 0.5, rtol=1e-6)
    assert found["masks"].shape == (1, 32, 64)


@pytest.mark.reliability
def test_a_compiled_model_finds_the_same(exported, tmp_path):
    info, program = load_detector(exported.onnx).info, torch.export.load(exported.program)
    detector = compile_and_load(program, info, tmp_path / "model.pt2")
    assert_detector_agrees(exported.model, detector)


def test_a_model_that_cannot_be_traced():
    class Branching(nn.Module):
        size_divisibility, padding_constraints = 32, {}

        def forward(self, x):
            return {"p2": x} if x.sum() > 0 else {"p2": -x}  # depends on the data

    model = small_model()
    pipeline = ExportPipeline(model)
    pipeline.backbone = Branching()
    info = describe(model, pipeline, small_config(), [], [])
    with pytest.raises(ConfigError, match="cannot be traced"):
        trace(pipeline, info)


def test_missing_packages_are_named():
    require_packages("onnx")
    with pytest.raises(ConfigError, match=r"nowhere and never.*solo_d2\[export\]"):
        require_packages("onnx", "nowhere", "never")
