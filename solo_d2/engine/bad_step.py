"""Training steps with infinite or NaN losses or gradients, and dumps to reproduce them.

In full precision and bfloat16 the first such step stops training. In float16 gradients overflow
regularly: `GradScaler` skips the step and lowers the scale, and training stops after many such
steps in a row.

The optimizer has not taken the step, so the weights are those before it; only the running
statistics of BatchNorm have been updated by the forward pass. If the optimizer can skip a step on
the device, the host reads the metrics one step later (`solo_d2.engine.step`).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils import comm
from torch import Tensor, nn

from solo_d2.data.cropped_masks import CroppedMasks
from solo_d2.engine.metrics import StepMetrics
from solo_d2.utils.errors import BadNumbersError, ConfigError, first_line, listed
from solo_d2.utils.files import whole_file

# With float16: limit of consecutive steps with bad losses, which the gradient scale can't fix ...
MAX_BAD_LOSSES = 10
# ... and with bad gradients. Each halves the scale, which is far below 1 at the limit.
MAX_BAD_GRADIENTS = 30
_FORMAT = 2


class RunRecord(NamedTuple):
    """The data of a run that dumps need."""

    folder: str  # folder of the dumps
    config: str  # config of the model as YAML; "" for a lazy config
    seed: int  # of each step, see `seed_step`; -1 for none


class BadSteps:
    """Count consecutive steps with bad losses and with bad gradients."""

    def __init__(self, *, skips_bad_gradients: bool):
        self.limits = (MAX_BAD_LOSSES, MAX_BAD_GRADIENTS) if skips_bad_gradients else (1, 1)
        self.counts = [0, 0]

    def add(self, metrics: Sequence[StepMetrics]) -> bool:
        """Count a step; return whether training must stop."""
        bad = any(m.bad_losses for m in metrics), any(m.has_bad_gradient for m in metrics)
        self.counts = [(n + 1) * is_bad for n, is_bad in zip(self.counts, bad, strict=True)]
        return any(n >= limit for n, limit in zip(self.counts, self.limits, strict=True))


def describe_bad_numbers(metrics: Sequence[StepMetrics]) -> str:
    """Describe the non-finite values of a step, with the other loss terms."""
    parts = []
    for rank, own in enumerate(metrics):
        if own.bad_losses:
            where = f" in process {rank}" if len(metrics) > 1 else ""
            bad = ", ".join(f"{name} is {own.losses[name]}" for name in own.bad_losses)
            fine = [f"{k} is {v:.4g}" for k, v in own.losses.items() if k not in own.bad_losses]
            parts.append(bad + where + (f" (finite: {', '.join(fine)})" if fine else ""))
    if parts:
        return "; ".join(parts)
    terms = ", ".join(f"{name} is {loss:.4g}" for name, loss in metrics[0].losses.items())
    return f"gradients are not finite, though the losses are ({terms})"


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
    """Dump a step, with the entries of `others`, and return the error to raise.

    Called by all processes, with the weights before the step. `gradient_norms` are by parameter
    name.
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
    written = comm.all_gather(written)[0]  # no process may end the job before it is written
    return BadNumbersError(
        f"Iteration {iteration}: {what}. Training stops; the weights are those before the step. "
        f"Images: {', '.join(files)}.{written}"
    )


def _bad_gradients(norms: Mapping[str, float]) -> str:
    bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
    if not bad:
        return ": the norm of each is finite, but not their total norm"
    return f", in {len(bad)} of {len(norms)} parameters: {listed(bad, 3)}"


def _write(content: dict[str, Any], file: Path) -> str:
    try:
        with whole_file(file) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch raises the latter for a full disk
        return f" The dump of the step could not be written to {file}: {error}"
    return f" To repeat the step: tools/replay_step.py {file}"


def _storable(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a training sample to the host, without NumPy arrays, which torch can't load safely."""
    kept = {k: v for k, v in sample.items() if isinstance(v, Tensor | str | int | float)}
    kept = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in kept.items()}
    if "instances" in sample:
        instances = kept["instances"] = sample["instances"].to("cpu")
        if isinstance(instances.gt_masks, PolygonMasks):
            polygons = instances.gt_masks.polygons
            instances.gt_masks = [[torch.as_tensor(p) for p in each] for each in polygons]
    return kept


def read_bad_step(file: str | Path) -> dict[str, Any]:
    """Read a dump of `stop_for_bad_numbers`, without running any code from the file.

    Raises:
        ConfigError: the file is missing, or no dump.
    """
    try:
        with torch.serialization.safe_globals([Instances, Boxes, BitMasks, CroppedMasks]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist") from None
    except Exception as error:  # zip, pickle and torch raise errors of many types
        raise ConfigError(f"{file} cannot be read: {first_line(error):.200}") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ConfigError(f"{file} is not a bad_step_*.pth of a training")
    for sample in (sample for batch in content["batches"].values() for sample in batch):
        if "instances" in sample and isinstance(sample["instances"].gt_masks, list):
            sample["instances"].gt_masks = PolygonMasks(sample["instances"].gt_masks)
    return content
