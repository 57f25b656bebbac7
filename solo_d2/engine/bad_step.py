"""Steps of training that come to infinity or NaN: when to stop, and a file that repeats the step.

In full precision and in bfloat16 the first such step stops training. In float16 gradients overflow
as a matter of course: `GradScaler` skips the step and lowers the scale. There training stops when
it goes on for long.

The optimizer has not taken the step, so the weights are those before it. (Running statistics of
BatchNorm are not: the forward pass has updated them.) Where the optimizer itself can skip a step on
the device, the host sees the numbers one step later (`solo_d2.engine.step`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils import comm
from torch import Tensor, nn

from solo_d2.engine.metrics import StepMetrics
from solo_d2.utils.errors import BadNumbersError, ConfigError
from solo_d2.utils.files import whole_file

# With float16: steps in a row with a loss that is not finite after which training stops. The scale
# of gradients has no part in them.
MAX_BAD_LOSSES = 10
# The same for steps that are skipped for their gradients. They halve the scale, and even the
# largest usual one, 2^16 and more, is far below 1 then.
MAX_BAD_GRADIENTS = 30
_FORMAT = 2


@dataclass(frozen=True)
class RunRecord:
    """What of a run its dumps hold.

    Attributes:
        folder: where they are written.
        config: of the model, as YAML; "" for a lazy config.
        seed: of the random numbers of each step (`SeedSteps`), -1 for none.
    """

    folder: str
    config: str
    seed: int


class BadSteps:
    """Counts the steps in a row that came to bad numbers."""

    def __init__(self, *, skips_bad_gradients: bool):
        """Start without any; in float16 steps with bad gradients are skipped."""
        self.num_losses = self.num_gradients = 0
        self.most_losses = MAX_BAD_LOSSES if skips_bad_gradients else 1
        self.most_gradients = MAX_BAD_GRADIENTS if skips_bad_gradients else 1

    def add(self, metrics: Sequence[StepMetrics]) -> bool:
        """Count a step; return whether training must stop."""
        bad_losses = any(m.bad_losses for m in metrics)
        bad_gradients = any(m.has_bad_gradient for m in metrics)
        self.num_losses = self.num_losses + 1 if bad_losses else 0
        self.num_gradients = self.num_gradients + 1 if bad_gradients else 0
        return self.num_losses >= self.most_losses or self.num_gradients >= self.most_gradients


def describe_bad_numbers(metrics: Sequence[StepMetrics]) -> str:
    """Name what is infinite or NaN in a step, with the other loss terms."""
    parts = []
    for rank, own in enumerate(metrics):
        where = f" in process {rank}" if len(metrics) > 1 else ""
        if own.bad_losses:
            bad = ", ".join(f"{name} is {own.losses[name]}" for name in own.bad_losses)
            fine = [f"{k} is {v:.4g}" for k, v in own.losses.items() if k not in own.bad_losses]
            parts.append(bad + where + (f" (finite: {', '.join(fine)})" if fine else ""))
    if not parts:
        terms = ", ".join(f"{name} is {loss:.4g}" for name, loss in metrics[0].losses.items())
        parts.append(f"gradients are not finite, though the losses are ({terms})")
    return "; ".join(parts)


def stop_for_bad_numbers(
    model: nn.Module,
    batch: Sequence[dict[str, Any]],
    metrics: Sequence[StepMetrics],
    *,
    gradient_norms: Mapping[str, float],
    iteration: int,
    record: RunRecord | None,
    others: Mapping[str, Any],
) -> BadNumbersError:
    """Write what repeats the step; all processes call it together.

    Args:
        model: with the weights before the step.
        batch: of this process.
        metrics: of all processes.
        gradient_norms: of the parameters that have a gradient, by name.
        iteration: of the step.
        record: of the run; None: nothing is written.
        others: plain values that the file has too.

    Returns:
        The error to raise, the same in all processes; all of them have waited for the file.
    """
    seen = [rank for rank, m in enumerate(metrics) if m.bad_losses] or list(range(len(metrics)))
    samples = [_storable(sample) for sample in batch] if comm.get_rank() in seen else []
    names = [sample.get("file_name", "an image without a name") for sample in samples]
    files = [name for part in comm.all_gather(names) for name in part]
    what = describe_bad_numbers(metrics)
    if not any(m.bad_losses for m in metrics):
        what += _bad_gradients(gradient_norms)
    batches = comm.gather(samples)
    written = ""
    if record is not None and comm.is_main_process():
        content = {
            "format": _FORMAT,
            "iteration": iteration,
            "message": what,
            "seed": record.seed,
            "config": record.config,
            "model": {key: value.cpu() for key, value in model.state_dict().items()},
            "batches": {rank: batches[rank] for rank in seen},
            "losses": [m.losses for m in metrics],
            **others,
        }
        written = _write(content, Path(record.folder) / f"bad_step_{iteration:07}.pth")
    written = comm.all_gather(written)[0]  # so that no process ends the job before it is written
    return BadNumbersError(
        f"Iteration {iteration}: {what}. Training stops; the weights are those before the step. "
        f"Images: {', '.join(files)}.{written}"
    )


def _bad_gradients(norms: Mapping[str, float]) -> str:
    bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
    if not bad:
        return ": the norm of each parameter's is finite, but that of all is not"
    shown = ", ".join([*bad[:3], *["..."][: len(bad) - 3]])
    return f", in {len(bad)} of {len(norms)} parameters: {shown}"


def _write(content: dict[str, Any], file: Path) -> str:
    try:
        with whole_file(file) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch's kind for a disk that is full
        return f" What would repeat the step could not be written to {file}: {error}"
    return f" {file} repeats the step: tools/replay_step.py {file}"


def _storable(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A training sample on the host, without NumPy's arrays, which are not loaded safely."""
    kept = {k: v for k, v in sample.items() if isinstance(v, Tensor | str | int | float)}
    kept = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in kept.items()}
    if "instances" in sample:
        instances = kept["instances"] = sample["instances"].to("cpu")
        if isinstance(instances.gt_masks, PolygonMasks):
            polygons = instances.gt_masks.polygons
            instances.gt_masks = [[torch.as_tensor(p) for p in each] for each in polygons]
    return kept


def read_bad_step(file: str | Path) -> dict[str, Any]:
    """Read what `stop_for_bad_numbers` wrote; nothing in the file is run as code.

    Raises:
        ConfigError: it is missing, or another kind of file.
    """
    try:
        with torch.serialization.safe_globals([Instances, Boxes, BitMasks]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist") from None
    except Exception as error:  # zip, pickle and torch have their own kinds
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} cannot be read: {type(error).__name__}: {reason:.200}") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ConfigError(f"{file} is no bad_step_*.pth of a training")
    for sample in (sample for batch in content["batches"].values() for sample in batch):
        if "instances" in sample and isinstance(sample["instances"].gt_masks, list):
            sample["instances"].gt_masks = PolygonMasks(sample["instances"].gt_masks)
    return content
