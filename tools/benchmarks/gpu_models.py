"""Whole models on a GPU: inference on a scene with objects, and training steps.

Weights are random, so head outputs are replaced by synthetic ones of the same shapes after the
network has run.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from solo_d2.inference import MaskDecoder
from tools.benchmarks.common import peak_memory
from tools.benchmarks.gpu_timing import Meter
from tools.benchmarks.head_outputs import NUM_GRIDS, KernelOutputs, make_outputs, to_device
from tools.benchmarks.scenes import make_instances

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "coco"
LIGHT, R50 = "solov2_light_448_R18_3x.yaml", "solov2_R50_1x.yaml"
# Fields of `SpeedOptions`, by the names of `benchmark.py inference`.
VARIANTS: dict[str, dict[str, Any]] = {
    "eager": {},
    "fused+channels_last+fp16": {"fuse_bn": True, "channels_last": True, "dtype": "float16"},
    "fused+channels_last+bf16": {"fuse_bn": True, "channels_last": True, "dtype": "bfloat16"},
    "fused+channels_last+fp16+cuda-graphs": {
        "fuse_bn": True, "channels_last": True, "dtype": "float16", "compile": "cuda-graphs"
    },
}  # fmt: skip
# Small model for a trial run.
TRIAL_OPTIONS = [
    *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.SOLO.HEAD.CONV_DIM", 32, "MODEL.SOLO.HEAD.NUM_CONVS", 1),
    *("MODEL.SOLO.MASK_FEATURE.CONV_DIM", 32, "MODEL.SOLO.MASK_FEATURE.OUT_CHANNELS", 32),
]
# Seconds reserved for compilation.
COMPILE_SECONDS = 120
NUM_CLASSES, NUM_CANDIDATES = 80, 300
Size = tuple[int, int]


def device_part(decoder: MaskDecoder, outputs: Any, sizes: Sequence[Size]) -> Callable[[], Any]:
    """Return the part of a decoder that a CUDA graph can capture: all but reading the count."""
    fixed = replace(decoder, fixed=True)
    return torch.no_grad()(partial(fixed.decode_lanes, outputs, [(size, size) for size in sizes]))


def build_model(name: str, meter: Meter) -> Any:
    """Build a random model of configs/coco; ImportError without Detectron2."""
    from detectron2.modeling import build_model as build

    from solo_d2.config import load_config

    torch.manual_seed(0)
    cfg = load_config(str(CONFIGS / name), TRIAL_OPTIONS if meter.is_trial else [])
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = str(meter.device), ""
    cfg.MODEL.SOLO.NUM_CLASSES = NUM_CLASSES
    return build(cfg)


def inference(meter: Meter) -> dict[str, Any]:
    """Measure models of two sizes in all variants at batch size 1."""
    cases = {LIGHT: (448, 597), R50: (800, 1067)}
    if meter.is_trial:
        cases = {LIGHT: (64, 96)}
    found: dict[str, Any] = {}
    for config, size in cases.items():
        for name, options in VARIANTS.items():
            key = f"{Path(config).stem} {size[0]}x{size[1]} {name}"
            needed = COMPILE_SECONDS if "compile" in options else 0
            if meter.seconds_left() < needed:
                found[key] = {"skipped": "not enough time left"}
                continue
            try:
                found[key] = _run_variant(meter, config, size, options)
            except ImportError:
                raise
            except Exception as error:  # unsupported by this GPU or torch
                found[key] = {"unavailable": f"{type(error).__name__}: {error}"[:500]}
            if meter.is_trial:
                break
    return found


def _run_variant(meter: Meter, config: str, size: Size, options: dict[str, Any]) -> dict[str, Any]:
    from solo_d2.modeling.speed import SpeedOptions, speed_up

    model = build_model(config, meter).eval()
    speed_up(model, SpeedOptions(**options))
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    if not meter.is_trial:
        image = image.pin_memory()
    inputs = [{"image": image, "height": size[0], "width": size[1]}]
    see_scene(model, image)
    with torch.no_grad():
        num_found = len(model(inputs)[0]["instances"])
        call = partial(model, inputs)
        latency, back_to_back = meter.latency(call), meter.back_to_back(call)
        network = partial(model.network, model.preprocess_image(inputs).tensor)
        return {
            "latency": latency,
            "images_per_second": 1e3 / back_to_back,
            "waits": meter.waits(call),
            "network_ms": meter.back_to_back(network),
            "instances": num_found,
            "peak_bytes": peak_memory(call, meter.device),
        }


def see_scene(model: Any, image: torch.Tensor) -> None:
    """Make a SOLOv2 model return the head outputs of a synthetic scene."""
    from solo_d2.modeling.heads.solov2 import SOLOv2Outputs

    network = model.network
    if tuple(model.head.num_grids) != NUM_GRIDS:
        raise ValueError(f"scenes are drawn for grids {NUM_GRIDS}")
    with torch.no_grad():
        head = network(model.preprocess_image([{"image": image}]).tensor).head
    channels = head.mask_features[0].shape[1]
    drawn: KernelOutputs = to_device(
        make_outputs(NUM_CANDIDATES, head.mask_size, channels, NUM_CLASSES, NUM_CANDIDATES),
        model.device,
    )
    dtype = head.mask_features[0].dtype  # may be half precision
    scene = SOLOv2Outputs(
        class_logits=[logits.to(dtype) for logits in drawn.class_logits],
        mask_size=drawn.mask_size,
        kernel_params=[params.to(dtype) for params in drawn.kernel_params],
        mask_features=[drawn.mask_feature.to(dtype)],
    )
    model.network = lambda images: replace(network(images), head=scene)


def training(meter: Meter) -> dict[str, Any]:
    """Measure training steps in float32 and mixed precision."""
    config, size, batch = (LIGHT, (64, 96), 1) if meter.is_trial else (R50, (800, 1216), 2)
    found: dict[str, Any] = {}
    for precision in (None,) if meter.is_trial else (None, torch.bfloat16):
        name = "float32" if precision is None else "bfloat16"
        found[f"{Path(config).stem} {size[0]}x{size[1]} {name}"] = _steps(
            meter, config, size, batch, precision
        )
    return found


def _steps(
    meter: Meter, config: str, size: Size, batch: int, precision: torch.dtype | None
) -> dict[str, Any]:
    from detectron2.utils.events import EventStorage

    from solo_d2.engine.step import StepTrainer

    model = build_model(config, meter).train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    trainer = StepTrainer(
        model,
        itertools.repeat(draw_batch(batch, size, pin=not meter.is_trial)),
        torch.optim.SGD(trainable, lr=1e-6, momentum=0.9, fused=True),
        precision=precision,
        reads_late=True,
    )
    iterations = itertools.count()

    def step() -> None:
        trainer.iter = next(iterations)
        trainer.run_step()

    with EventStorage():
        milliseconds = meter.back_to_back(step)
        latency, waits = meter.latency(step), meter.waits(step)
        peak = peak_memory(step, meter.device)
    return {
        "batch": batch,
        "back_to_back_ms": milliseconds,
        "images_per_second": 1e3 * batch / milliseconds,
        "latency": latency,
        "waits": waits,
        "peak_bytes": peak,
    }


def draw_batch(num: int, size: Size, *, pin: bool) -> list[dict[str, Any]]:
    """Generate training samples with ten objects each; `pin` uses pinned memory."""
    from solo_d2.data.loader import PinnableBatch

    samples = []
    for index in range(num):
        image = torch.randint(256, (3, *size), dtype=torch.uint8)
        samples.append(
            {"image": image, "instances": make_instances(10, size, NUM_CLASSES, seed=index)}
        )
    return PinnableBatch(samples).pin_memory() if pin else samples
