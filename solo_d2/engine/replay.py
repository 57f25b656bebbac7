"""Replay of a step with non-finite values (`solo_d2.engine.bad_step`), to find their cause."""

import tempfile
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from solo_d2.config import load_config
from solo_d2.engine.hooks import seed_step
from solo_d2.engine.step import StepTrainer
from solo_d2.utils.errors import ConfigError


def rebuild_model(content: Mapping[str, Any], device: str, lazy_config: str | None) -> Any:
    """Build the model of a bad step, with its weights; SyncBN becomes BN.

    Args:
        content: result of `read_bad_step`.
        device: device of the model.
        lazy_config: file of a lazy config (.py, or .yaml as saved), which is run as code.

    Raises:
        ConfigError: the config cannot be used, or is missing.
    """
    if lazy_config is not None:
        model = instantiate(LazyConfig.load(lazy_config).model).to(device)
    elif content["config"]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "config_of_the_step.yaml"
            file.write_text(content["config"].replace("SyncBN", "BN"))
            model = build_model(load_config(str(file), ["MODEL.DEVICE", device, "VIS_PERIOD", 0]))
    else:
        raise ConfigError(
            "The file does not contain the lazy config of its training: pass it with --lazy-config "
            "FILE (config.yaml of its output_dir)"
        )
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise ConfigError(f"The weights do not fit: {' '.join(str(error).split()):.500}") from error
    return model.train()


def replay_step(model: nn.Module, content: Mapping[str, Any], process: int) -> dict[str, Any]:
    """Run a step of a process like the trainer, but with the loss counts of this process only.

    Args:
        model: result of `rebuild_model`; its weights are not changed.
        content: result of `read_bad_step`.
        process: a key of its batches.

    Returns:
        "losses", all terms as numbers; and the names of non-finite "weights" before the step,
        "gradients", and modules with non-finite "outputs", in the order of the forward pass.
    """
    weights = [name for name, value in model.state_dict().items() if not _is_finite(value)]
    batch, precision = content["batches"][process], getattr(torch, content["precision"])
    trainer = StepTrainer(
        model,
        [batch],
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0),
        num_micro_batches=content["num_micro_batches"],
        precision=None if precision == torch.float32 else precision,
        init_scale=content["loss_scale"],
    )
    if content["seed"] >= 0:
        seed_step(content["seed"], content["iteration"], process)
    outputs: list[str] = []

    def note(name: str, _module: nn.Module, inputs: Any, output: Any) -> None:
        if not _is_finite(output):
            # Bad inputs come from code of the enclosing module.
            outputs.append(name if _is_finite(inputs) else name.rpartition(".")[0])

    for name, module in model.named_modules():
        module.register_forward_hook(partial(note, name))
    with EventStorage(content["iteration"]):
        losses = trainer.compute_gradients(batch)
    return {
        "losses": {name: float(loss) for name, loss in losses.items()},
        "weights": weights,
        "outputs": outputs,
        "gradients": [n for n, p in model.named_parameters() if not _is_finite(p.grad)],
    }


def _is_finite(value: Any) -> bool:
    """Return whether all tensors in a module's inputs or output are finite."""
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    if isinstance(value, Mapping) or is_dataclass(value):
        value = list((value if isinstance(value, Mapping) else vars(value)).values())
    return not isinstance(value, list | tuple) or all(map(_is_finite, value))
