"""Repeats a step that came to bad numbers (`solo_d2.engine.bad_step`), to find their cause."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from solo_d2.config import load_config
from solo_d2.engine.bad_step import restore_sample
from solo_d2.engine.hooks import seed_step
from solo_d2.engine.step import StepTrainer
from solo_d2.utils.errors import ConfigError


@dataclass(frozen=True)
class Replay:
    """What is infinite or NaN in a step of one process.

    Attributes:
        process: whose batch it was.
        weights: names of parameters and buffers that were so before the step.
        losses: all terms, as numbers.
        module: name of the module whose output is so first, "" for the model's own work or its
            images; None if there is none.
        gradients: names of the parameters whose gradients are so.
        num_gradients: of all parameters that have one.
    """

    process: int
    weights: list[str]
    losses: dict[str, float]
    module: str | None
    gradients: list[str]
    num_gradients: int

    @property
    def is_finite(self) -> bool:
        """Whether nothing is wrong."""
        numbers = torch.tensor(list(self.losses.values()))
        return bool(numbers.isfinite().all()) and not self.gradients and self.module is None


def rebuild_model(content: Mapping[str, Any], device: str, lazy_config: str | None) -> Any:
    """The model of a bad step, with its weights.

    BatchNorm of several processes becomes that of one.

    Args:
        content: of `read_bad_step`.
        device: where the model goes.
        lazy_config: the lazy config (.py, or .yaml as it was saved) of a training that was made of
            one; it is run as code.

    Raises:
        ConfigError: the config cannot be used, or is missing.
    """
    if lazy_config is not None:
        model = instantiate(LazyConfig.load(lazy_config).model).to(device)
    elif content["config"]:
        model = build_model(_config(content["config"], device))
    else:
        raise ConfigError(
            "The training was made of a lazy config, which the file does not hold: name it by "
            "--lazy-config FILE (config.yaml of its output_dir)"
        )
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"The weights do not fit the config's model: {reason:.500}") from error
    return model.train()


def _config(text: str, device: str) -> CfgNode:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config_of_the_step.yaml"
        file.write_text(text.replace("SyncBN", "BN"))
        cfg = load_config(str(file))
    cfg.MODEL.DEVICE, cfg.VIS_PERIOD = device, 0
    return cfg


def replay_step(model: nn.Module, content: Mapping[str, Any], process: int) -> Replay:
    """Run a step of a process forward and backward, as the trainer did.

    The losses of several processes are divided by counts of all of them; here by those of this
    batch.

    Args:
        model: of `rebuild_model`; its gradients are overwritten, and its weights stay.
        content: of `read_bad_step`.
        process: a key of its batches.
    """
    weights = [name for name, value in model.state_dict().items() if not _is_finite(value)]
    batch = [restore_sample(sample) for sample in content["batches"][process]]
    parameters = [p for p in model.parameters() if p.requires_grad]
    precision = getattr(torch, content["precision"])
    trainer = StepTrainer(
        model,
        [batch],
        torch.optim.SGD(parameters, lr=0.0),
        num_micro_batches=content["num_micro_batches"],
        precision=None if precision == torch.float32 else precision,
    )
    trainer.grad_scaler = torch.amp.GradScaler(
        trainer.device_type,
        init_scale=content["loss_scale"],
        enabled=precision == torch.float16,
    )
    if content["seed"] >= 0:
        seed_step(content["seed"], content["iteration"], process)
    trainer.optimizer.zero_grad()
    first = _FirstBadOutput(model)
    with EventStorage(content["iteration"]), first:
        losses = trainer.compute_gradients(batch)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Replay(
        process=process,
        weights=weights,
        losses={name: float(loss) for name, loss in losses.items()},
        module=first.name,
        gradients=[name for name, value in gradients.items() if not _is_finite(value)],
        num_gradients=len(gradients),
    )


class _FirstBadOutput:
    """Watches all modules while it is entered.

    Attributes:
        name: of the module in which the first output was not finite; "" for the model itself.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.name: str | None = None

    def __enter__(self) -> None:
        self.handles = [
            module.register_forward_hook(self._make_hook(name))
            for name, module in self.model.named_modules()
            if name
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _make_hook(self, name: str) -> Any:
        def look(_module: nn.Module, inputs: Any, output: Any) -> None:
            if self.name is None and not all(map(_is_finite, _tensors(output))):
                # Bad inputs come from what the module around it has computed itself.
                begins_here = all(map(_is_finite, _tensors(inputs)))
                self.name = name if begins_here else name.rpartition(".")[0]

        return look


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in an output of a module."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            yield from _tensors(each)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _is_finite(value: Tensor) -> bool:
    return bool(value.isfinite().all())


def format_replay(replay: Replay) -> str:
    """What is printed."""
    lines = [f"Process {replay.process}:"]
    if replay.weights:
        lines.append(f"  weights that were not finite before the step: {_some(replay.weights)}")
    lines += [f"  {name}: {loss:g}" for name, loss in replay.losses.items()]
    where = f"module {replay.module}" if replay.module else "the model itself, or its images"
    if replay.module is None:
        where = "none: the network's outputs are finite"
    lines.append(f"  first output that is not finite: {where}")
    lines.append(
        f"  gradients that are not finite: {len(replay.gradients)} of {replay.num_gradients}"
        + (f": {_some(replay.gradients)}" if replay.gradients else "")
    )
    return "\n".join(lines)


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + ", ..." * (len(names) > most)
