"""Compare every kernel with plain PyTorch, with uninitialised memory filled by NaN.

A check returns the error, or "". On a CPU the tiled backend replaces the kernels.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solo_d2.inference import NMS
from solo_d2.ops.binary_masks import binarize_product
from solo_d2.ops.mask_iou import mask_overlaps
from solo_d2.ops.paste_masks import new_masks, paste_masks
from solo_d2.ops.rle import run_lengths
from tools.benchmarks.gpu_timing import Meter
from tools.benchmarks.head_outputs import make_outputs, to_device
from tools.benchmarks.postprocess import Ours
from tools.benchmarks.scenes import make_scene

# Number and size of masks: none, one, odd ones, and those of a photograph.
CASES = [(0, (7, 13)), (1, (1, 1)), (1, (7, 13)), (17, (7, 13)), (129, (100, 167))]
LARGE = [(500, (200, 304))]
# Logits this close to the threshold may be rounded to either side.
TOLERANCE = 1e-3
# Share of pixels at the final size that may differ because of rounding.
FEW = 1e-4

Check = Callable[[torch.device, str], str]


def run_checks(meter: Meter) -> dict[str, Any]:
    """Run all checks on the device, and on a second GPU if available."""
    backend = "tiled" if meter.is_trial else "triton"
    checks = dict(_checks(CASES[:4] if meter.is_trial else CASES + LARGE))
    with written_nowhere():
        devices = [meter.device]
        if meter.device.type == "cuda" and torch.cuda.device_count() > 1:
            index = torch.cuda.current_device()  # unchanged by this
            devices.append(torch.device("cuda", (index + 1) % torch.cuda.device_count()))
        found = {
            f"{name} on {device}": _run(check, device, backend)
            for device in devices
            for name, check in checks.items()
        }
    return {
        "backend": backend,
        "devices": len(devices),
        "checks": len(found),
        "wrong": {name: detail for name, detail in found.items() if detail},
    }


def _run(check: Check, device: torch.device, backend: str) -> str:
    try:
        return check(device, backend)
    except Exception as error:  # the other checks continue
        return f"{type(error).__name__}: {error}"[:500]


@contextlib.contextmanager
def written_nowhere() -> Iterator[None]:
    """Fill new memory with NaN or the largest integer, to detect unwritten elements."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about nondeterministic algorithms
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        memory.fill_uninitialized_memory = fills


def _checks(cases: list[tuple[int, tuple[int, int]]]) -> Iterator[tuple[str, Check]]:
    for num, size in cases:
        text = f"{num} of {size[0]}x{size[1]}"
        yield f"overlaps, {text}", partial(_overlaps, num, size)
        for name in NMS:
            yield f"{name} NMS, {text}", partial(_nms, name, num, size)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            kind = str(dtype).removeprefix("torch.")
            yield f"masks, {text}, {kind}", partial(_product, num, size, dtype)
        yield f"paste, {text}", partial(_paste, num, size)
        yield f"RLE, {text}", partial(_rle, num, size)
    for num in (0, 1, 30):
        yield f"decoder, {num} candidates", partial(_decode, num, 100, 1000)
    yield "decoder, more candidates than enter NMS", partial(_decode, 60, 20, 1000)
    yield "decoder, more candidates than lanes", partial(_decode, 60, 20, 30)
    yield "decoder, NaN", partial(_decode, 30, 100, 1000, spoil=True)


def _scene(num: int, size: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
    return tuple(x.to(device) for x in make_scene(num, size, 5, seed=num))


def _overlaps(num: int, size: tuple[int, int], device: torch.device, backend: str) -> str:
    masks, labels, _ = _scene(num, size, device)
    flat = masks.flatten(1).double().cpu()
    groups = labels.cpu()
    expected = (flat @ flat.T * (groups[:, None] == groups)).triu()
    found = mask_overlaps(masks, labels, backend=backend).cpu().double().triu()
    wrong = int((found != expected).sum())
    return f"{wrong} of {num}x{num} counts differ" if wrong else ""


def _nms(name: str, num: int, size: tuple[int, int], device: torch.device, backend: str) -> str:
    scene = _scene(num, size, device)
    found = NMS[name](*scene, backend=backend).cpu()
    again = NMS[name](*scene, backend=backend).cpu()
    expected = NMS[name](*(x.cpu() for x in scene), backend="torch")
    if not torch.equal(found, again):
        return "two runs differ"
    return _difference(found, expected, 1e-5)


def _difference(found: Tensor, expected: Tensor, most: float) -> str:
    if found.shape != expected.shape or not found.isfinite().all():
        return f"not finite, or {tuple(found.shape)} for {tuple(expected.shape)}"
    largest = float((found - expected).abs().max()) if len(found) else 0.0
    return f"differs by {largest:.3g}" if largest > most else ""


def _product(
    num: int, size: tuple[int, int], dtype: torch.dtype, device: torch.device, backend: str
) -> str:
    generator = torch.Generator().manual_seed(num)
    kernels = torch.randn(num, 48, generator=generator).to(dtype)
    feature = torch.rand(48, *size, generator=generator).to(dtype)
    if num > 2:
        kernels[2, 3] = torch.nan
    masks, areas, sums = (
        x.cpu() for x in binarize_product(kernels.to(device), feature.to(device), 0.5,
                                          backend=backend)
    )  # fmt: skip
    logits = (kernels.double() @ feature.flatten(1).double()).view(num, *size)
    good = logits.isfinite().all(dim=(1, 2))
    areas, sums = areas.sum(dim=1), sums.sum(dim=1)
    if not torch.equal(sums.isfinite(), good):
        return "a mask with NaN has a finite sum, or one without has none"
    if not torch.equal(areas[good], masks[good].sum(dim=(1, 2))):
        return "areas are not those of the masks"
    wrong = (masks != (logits > 0)) & (logits.abs() > TOLERANCE)
    if wrong[good].any():
        return f"{int(wrong[good].sum())} pixels differ"
    expected = (logits.sigmoid() * masks).sum(dim=(1, 2))[good]
    return _difference(sums[good] / expected.clamp(min=1), expected / expected.clamp(min=1), 1e-3)


def _paste(num: int, size: tuple[int, int], device: torch.device, backend: str) -> str:
    masks, _, _ = _scene(num, size, device)
    generator = torch.Generator().manual_seed(num)
    probs = masks * (0.4 + 0.6 * torch.rand(masks.shape, generator=generator).to(device))
    image_size = max(1, 4 * size[0] - 3), max(1, 4 * size[1] - 1)
    results = []
    for kind in (backend, "torch"):
        out = new_masks(num, (3 * size[0] + 1, 5 * size[1]), device, backend=kind)
        boxes = paste_masks(
            probs, stride=4, image_size=image_size, thresh=0.5, out=out, backend=kind
        )
        results.append((out.cpu(), boxes.cpu()))
    return _compare_masks(*results[0], *results[1])


def _compare_masks(masks: Tensor, boxes: Tensor, expected: Tensor, expected_boxes: Tensor) -> str:
    differ = masks != expected
    if int(differ.sum()) > FEW * differ.numel() + 1:
        return f"{int(differ.sum())} of {differ.numel()} pixels differ"
    same = ~differ.flatten(1).any(dim=1) if len(differ) else torch.zeros(0, dtype=torch.bool)
    return "" if torch.equal(boxes[same], expected_boxes[same]) else "boxes differ"


def _rle(num: int, size: tuple[int, int], device: torch.device, backend: str) -> str:
    masks, _, _ = _scene(num, size, device)
    found, expected = run_lengths(masks), run_lengths(masks.cpu())
    is_same = all(map(np.array_equal, found, expected))
    return "" if is_same else "run lengths differ"


def _decode(
    num: int, topk: int, lanes: int, device: torch.device, backend: str, *, spoil: bool = False
) -> str:
    outputs = make_outputs(num, (20, 31), 16, 5, num, seed=num)
    if spoil:
        outputs.class_logits[0][0, 1, 3, 3] = torch.nan
        outputs.kernel_params[0][0, 5] = torch.nan
        outputs.kernel_params[1][0, 5] = torch.inf
    sizes = [(77, 121)], [(90, 133)]
    ours, reference = Ours(device, backend).decoder, Ours(torch.device("cpu"), "torch").decoder
    results = []
    for decoder in (
        replace(ours, pre_nms_topk=topk, lanes=lanes, fixed=True),
        replace(reference, pre_nms_topk=topk),
    ):
        on_device = to_device(outputs, decoder.cell_levels.device)
        results.append(decoder.decode(on_device, *sizes)[0])
    found, expected = results
    if len(found.scores) != len(expected.scores):
        return f"{len(found.scores)} instances for {len(expected.scores)}"
    if not torch.equal(found.classes.cpu(), expected.classes):
        return "classes differ"
    return _difference(found.scores.cpu(), expected.scores, 1e-4) or _compare_masks(
        found.masks.cpu(), found.boxes.cpu(), expected.masks, expected.boxes
    )
