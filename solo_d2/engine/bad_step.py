"""Steps of training that come to infinity or NaN: when to stop, and a file that repeats the step.

In full precision and in bfloat16 the first such step stops training. In float16 gradients overflow
as a matter of course: `GradScaler` leaves the step out and lowers the scale. There training stops
when it goes on for long.

The optimizer has not taken the step, so the weights are those before it. (Running statistics of
BatchNorm are not: the forward pass has moved them.)
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils import comm
from torch import Tensor, nn

from solo_d2.engine.figures import StepFigures, describe_bad_numbers
from solo_d2.utils.errors import BadNumbersError, ConfigError
from solo_d2.utils.files import whole_file

logger = logging.getLogger("solo_d2")

# With float16: steps in a row with a loss that is not finite after which training stops. The scale
# of gradients has no part in them.
MAX_BAD_LOSSES = 10
# The same for steps that are left out for their gradients. They halve the scale, and even the
# largest usual one, 2^16 and more, is far below 1 then.
MAX_BAD_GRADIENTS = 30
# Parameters that the message names.
_EXAMPLES = 3
_FORMAT = 1


@dataclass(frozen=True)
class RunRecord:
    """What of a run its dumps hold.

    Attributes:
        folder: where they are written.
        config: of the model, as YAML; "" if it was not made of one.
        seed: of the random numbers of each step (`SeedSteps`), -1 for none.
    """

    folder: str
    config: str
    seed: int


class BadSteps:
    """Counts the steps in a row that came to bad numbers."""

    def __init__(self, *, some_are_left_out: bool):
        """Start without any.

        Args:
            some_are_left_out: whether gradients that are not finite lead to no step.
        """
        self.num_losses = self.num_gradients = 0
        self.most_losses = MAX_BAD_LOSSES if some_are_left_out else 1
        self.most_gradients = MAX_BAD_GRADIENTS if some_are_left_out else 1

    def add(self, figures: Sequence[StepFigures]) -> bool:
        """Count a step.

        Returns:
            Whether training must stop.
        """
        bad_losses = any(f.bad_losses for f in figures)
        bad_gradients = any(f.has_bad_gradient for f in figures)
        self.num_losses = self.num_losses + 1 if bad_losses else 0
        self.num_gradients = self.num_gradients + 1 if bad_gradients else 0
        return self.num_losses >= self.most_losses or self.num_gradients >= self.most_gradients


def stop_for_bad_numbers(
    model: nn.Module,
    batch: Sequence[dict[str, Any]],
    figures: Sequence[StepFigures],
    *,
    iteration: int,
    record: RunRecord | None,
    others: Mapping[str, Any],
) -> BadNumbersError:
    """Write what repeats the step; all processes call it together.

    Args:
        model: with the gradients of the step.
        batch: of this process.
        figures: of all processes.
        iteration: of the step.
        record: of the run; None: nothing is written.
        others: plain values that the file has too.

    Returns:
        The error to raise, the same in all processes; all of them have waited for the file.
    """
    seen = [rank for rank, f in enumerate(figures) if f.bad_losses] or list(range(len(figures)))
    mine = comm.get_rank() in seen
    names = [str(sample.get("file_name", "an image without a name")) for sample in batch]
    files = [name for part in comm.all_gather(names if mine else []) for name in part]
    what = describe_bad_numbers(figures) + _bad_parameters(model, figures)
    batches = comm.gather([plain_sample(sample) for sample in batch] if mine else None)
    kept = ""
    if record is not None:
        if comm.is_main_process():
            content = {
                "format": _FORMAT,
                "iteration": iteration,
                "message": what,
                "seed": record.seed,
                "config": record.config,
                "model": {key: value.cpu() for key, value in model.state_dict().items()},
                "batches": {rank: batches[rank] for rank in seen},
                "losses": [f.losses for f in figures],
                **others,
            }
            kept = _write(content, Path(record.folder) / f"bad_step_{iteration:07}.pth")
        kept = comm.all_gather(kept)[0]  # so that no process ends the job before it is written
    return BadNumbersError(
        f"Iteration {iteration}: {what}. Training stops; the weights are those before the step. "
        f"Images: {', '.join(files)}.{kept}"
    )


def _bad_parameters(model: nn.Module, figures: Sequence[StepFigures]) -> str:
    """Whose gradients are bad, where the losses are not."""
    if any(f.bad_losses for f in figures):
        return ""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    if not bad:
        return ": none is infinite, but their norm is"
    dots = ", ..." * (len(bad) > _EXAMPLES)
    listed = ", ".join(bad[:_EXAMPLES])
    return f", in {len(bad)} of {len(gradients)} parameters: {listed}{dots}"


def _write(content: dict[str, Any], file: Path) -> str:
    try:
        with whole_file(file) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch's kind for a disk that is full
        return f" What would repeat the step could not be written to {file}: {error}"
    return f" {file} repeats the step: tools/replay_step.py {file}"


def plain_sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A training sample as tensors, texts, numbers, lists and dicts, on the host."""
    plain: dict[str, Any] = {
        key: value.cpu() if isinstance(value, Tensor) else value
        for key, value in sample.items()
        if isinstance(value, Tensor | str | int | float)
    }
    instances = sample.get("instances")
    if instances is not None:
        masks = instances.gt_masks
        if isinstance(masks, PolygonMasks):
            masks = [[torch.as_tensor(polygon) for polygon in each] for each in masks.polygons]
        else:
            masks = masks.tensor.cpu()
        plain["instances"] = {
            "image_size": list(instances.image_size),
            "gt_boxes": instances.gt_boxes.tensor.cpu(),
            "gt_classes": instances.gt_classes.cpu(),
            "gt_masks": masks,
        }
    return plain


def restore_sample(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The training sample that `plain_sample` was given."""
    sample = dict(plain)
    if "instances" in sample:
        fields = sample["instances"]
        masks = fields["gt_masks"]
        if isinstance(masks, Tensor):
            masks = BitMasks(masks)
        else:
            masks = PolygonMasks([[np.asarray(polygon) for polygon in each] for each in masks])
        sample["instances"] = Instances(
            tuple(fields["image_size"]),
            gt_boxes=Boxes(fields["gt_boxes"]),
            gt_classes=fields["gt_classes"],
            gt_masks=masks,
        )
    return sample


def read_bad_step(file: str | Path) -> dict[str, Any]:
    """Read what `stop_for_bad_numbers` wrote; nothing in the file is run as code.

    Raises:
        ConfigError: it is missing, or another kind of file.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist") from None
    except Exception as error:  # zip, pickle and torch have their own kinds
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} cannot be read: {type(error).__name__}: {reason:.200}") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ConfigError(f"{file} is no bad_step_*.pth of a training")
    return content
