"""Faster and leaner training (keys of `SOLVER`) and faster inference (`TEST.SPEED`).

`TEST.SPEED` applies to backbone, head and semantic branch. The following steps (scores, areas, mask
NMS, resizing) always get float32.
"""

import logging
import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from solo_d2.config.rules import one_of, require
from solo_d2.modeling.decode_graphs import DecodeGraphs
from solo_d2.modeling.fusion import fuse_batch_norms
from solo_d2.modeling.heads import SOLOHeadBase
from solo_d2.modeling.layers import NormedConv2d
from solo_d2.modeling.meta_arch.solo import SOLO
from solo_d2.ops.recompute import Recomputing
from solo_d2.ops.winograd import WinogradConvolutions, is_wide
from solo_d2.structures import NetworkOutputs, map_tensors
from solo_d2.utils.errors import ConfigError, first_line

logger = logging.getLogger("solo_d2")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Values of TEST.SPEED.FUSE_BN, CHANNELS_LAST and WINOGRAD, and of SOLVER.WINOGRAD.
SWITCH = (None, "auto", True, False)
AUTOMATIC = (None, "auto")
# Values of TEST.SPEED.COMPILE, with their arguments for torch.compile.
COMPILE: dict[str, dict[str, Any]] = {
    "": {},
    "dynamic": {"dynamic": True},
    "static": {"dynamic": False},
    "cuda-graphs": {"dynamic": False, "mode": "reduce-overhead"},
}
# Values of SOLVER.COMPILE. CUDA graphs would overwrite the outputs of the previous step.
TRAINING_COMPILE = {name: COMPILE[name] for name in ("", "dynamic", "static")}


def speed_up_training(
    model: nn.Module,
    *,
    channels_last: bool,
    compile: str,
    winograd: bool = False,
    recompute: bool = False,
) -> nn.Module:
    """Set memory format and implementation of a model's network, without changing its state dict.

    Copies of the model, such as EMA models, are not compiled.

    Args:
        model: any Detectron2 model, before it is wrapped and before its optimizer is created.
        channels_last: whether to use torch.channels_last.
        compile: a key of `TRAINING_COMPILE`, for backbone, head and semantic branch.
        winograd: whether these use `WinogradConvolutions` on images in torch.channels_last, for
            training in float32 on a CPU without `compile`.
        recompute: whether the model runs within `Recomputing`, without `compile`.

    Returns:
        The model.
    """
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if winograd:
        logger.info("SOLVER.WINOGRAD: training uses Winograd convolutions and channels last")
    hooks = _WinogradHooks()
    for part in model.children():
        if winograd:
            hooks.register(part)
        if compile:
            part.compile(**TRAINING_COMPILE[compile])
    if recompute:
        logger.info("SOLVER.RECOMPUTE: norms of the head are computed twice to save memory")
        _ContextHooks(Recomputing()).register(model)
    return model


def training_options(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """Return the arguments of `speed_up_training` for a model, by the keys of SOLVER.

    None and "auto" turn both on for models with many channels on a CPU without compilation: if more
    than 80 % of the trained 3x3 convolutions have enough (`is_wide`). WINOGRAD needs float32 and an
    x86 CPU, RECOMPUTE a head with a GroupNorm.

    Raises:
        ConfigError: WINOGRAD or RECOMPUTE is unknown, or True with COMPILE.
    """
    solver = cfg.SOLVER
    for key in ("WINOGRAD", "RECOMPUTE"):
        rule = one_of(SWITCH)
        require(rule.holds(solver[key]), f"SOLVER.{key}", solver[key], rule.allowed)
        _check_without_compile("SOLVER", solver, key)
    winograd, recompute, device = solver.WINOGRAD, solver.RECOMPUTE, cfg.MODEL.DEVICE
    are_wide = [
        is_wide(conv.weight)
        for conv in model.modules()
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) and conv.weight.requires_grad
    ]
    suits = sum(are_wide) > 0.8 * len(are_wide) and not solver.COMPILE
    if winograd in AUTOMATIC:
        winograd = suits and not solver.AMP.ENABLED and _is_x86(device)
    has_norms = any(isinstance(part, NormedConv2d) and part.recomputes for part in model.modules())
    if recompute in AUTOMATIC:
        recompute = suits and has_norms and device == "cpu"
    elif recompute and not has_norms:
        logger.warning("SOLVER.RECOMPUTE has no effect: the head has no GroupNorm")
    return {
        "channels_last": solver.CHANNELS_LAST,
        "compile": solver.COMPILE,
        "winograd": bool(winograd),
        "recompute": bool(recompute),
    }


class _ContextHooks:
    """Forward hooks that run a module within a context, in training mode."""

    def __init__(self, context: Any):
        self.context = context

    def register(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(self.enter)
        module.register_forward_hook(self.leave, always_call=True)

    def enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if module.training:
            self.context.__enter__()
        return inputs

    def leave(self, module: nn.Module, *_: Any) -> None:
        if module.training:
            self.context.__exit__(None, None, None)


class _WinogradHooks(_ContextHooks):
    """Hooks for `WinogradConvolutions`.

    Images become channels_last, and so do the features computed from them. Weights keep the default
    format, to which other convolutions than 1x1 would have to copy them in each step.
    """

    def __init__(self) -> None:
        super().__init__(WinogradConvolutions())

    def enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        super().enter(module, inputs)
        if not module.training:
            return inputs
        return tuple(
            x.contiguous(memory_format=torch.channels_last)
            if isinstance(x, Tensor) and x.dim() == 4
            else x
            for x in inputs
        )


@dataclass(frozen=True)
class SpeedOptions:
    """Options of TEST.SPEED; `dtype` is a key of `DTYPES`, `compile` of `COMPILE`."""

    fuse_bn: bool = False
    channels_last: bool = False
    dtype: str = "float32"
    compile: str = ""
    winograd: bool = False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "SpeedOptions":
        """Read TEST.SPEED, and resolve "auto" by MODEL.DEVICE.

        Raises:
            ConfigError: a value is unknown, or WINOGRAD is True with COMPILE.
        """
        speed = cfg.TEST.SPEED
        switches = dict.fromkeys(("FUSE_BN", "CHANNELS_LAST", "WINOGRAD"), SWITCH)
        choices = {**switches, "DTYPE": DTYPES, "COMPILE": COMPILE}
        for key, known in choices.items():
            rule = one_of(known)
            require(rule.holds(speed[key]), f"TEST.SPEED.{key}", speed[key], rule.allowed)
        device = cfg.MODEL.DEVICE.partition(":")[0]
        nhwc = device == "cpu" or (device == "cuda" and speed.DTYPE != "float32")
        winograd = _is_x86(device) and speed.DTYPE == "float32" and not speed.COMPILE
        _check_without_compile("TEST.SPEED", speed, "WINOGRAD")
        if speed.WINOGRAD not in AUTOMATIC:
            winograd = speed.WINOGRAD
        return cls(
            fuse_bn=True if speed.FUSE_BN in AUTOMATIC else speed.FUSE_BN,
            channels_last=nhwc if speed.CHANNELS_LAST in AUTOMATIC else speed.CHANNELS_LAST,
            dtype=speed.DTYPE,
            compile=speed.COMPILE,
            winograd=winograd,
        )


def speed_up(model: SOLO, options: SpeedOptions) -> SOLO:
    """Speed up inference of a model, in place.

    Args:
        model: model with its weights. With any option it can only be used for inference afterwards;
            it can still be copied and pickled.
        options: options to apply.

    Returns:
        The model.

    Raises:
        ConfigError: an option is unavailable on the model's device.
    """
    _check_device(model.device, options)
    if options == SpeedOptions():
        return model
    model.eval().requires_grad_(False)
    folded = fuse_batch_norms(model) if options.fuse_bn else 0
    logger.info(
        f"TEST.SPEED: {folded} BatchNorms folded, channels "
        f"{'last' if options.channels_last else 'first'}, {options.dtype}"
        + (", Winograd convolutions" if options.winograd else "")
        + (f", compiled ({options.compile})" if options.compile else "")
    )
    if options.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if replace(options, fuse_bn=False) != SpeedOptions():
        model.network = FastNetwork(model, options)  # type: ignore[method-assign]
    if options.compile == "cuda-graphs":
        model.decoder_params = model.decoder_params | {"run_lanes": DecodeGraphs()}
    return model


def _is_x86(device: str) -> bool:
    # Libraries for other CPUs have fast convolutions of their own.
    return device == "cpu" and platform.machine().lower() in ("x86_64", "amd64")


def _check_without_compile(section: str, node: CfgNode, key: str) -> None:
    if node[key] is True and node.COMPILE:
        raise ConfigError(
            f"{section}.{key} is True, but must be False with {section}.COMPILE {node.COMPILE!r}"
        )


def _check_device(device: torch.device, options: SpeedOptions) -> None:
    if options.compile == "cuda-graphs" and device.type != "cuda":
        raise ConfigError(
            f"TEST.SPEED.COMPILE is 'cuda-graphs', but the model is on {device.type}: set "
            "MODEL.DEVICE to cuda, or TEST.SPEED.COMPILE to 'dynamic'"
        )
    if options.dtype == "bfloat16" and device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ConfigError(
                "TEST.SPEED.DTYPE is 'bfloat16', which this GPU does not support: set it to "
                "'float16'"
            )


class FastNetwork:
    """Replacement of `SOLO.network` in eval mode, with dtype, channels_last and compile."""

    def __init__(self, model: SOLO, options: SpeedOptions):
        self.model, self.options = model, options
        self._convolutions = WinogradConvolutions(keep_kernels=True) if options.winograd else None
        self._compiled: Callable[[Tensor], NetworkOutputs] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_compiled": None}  # compiled functions can't be pickled

    @torch.no_grad()
    def __call__(self, images: Tensor) -> NetworkOutputs:
        """Run `SOLO.network`; the outputs own their memory.

        They are float32 on the CPU; on CUDA half precision is kept for the product of the masks.
        They are contiguous, except for those of SOLOv2 on the CPU, which stay channels last: the
        product of the masks reads that layout equally fast.

        Raises:
            ConfigError: the network cannot be compiled.
        """
        mode = self.options.compile
        if not mode:
            return self._tidy(self._run(images), images.device)
        if self._compiled is None:
            self._compiled = torch.compile(self._run, fullgraph=True, **COMPILE[mode])
        if mode == "cuda-graphs":
            torch.compiler.cudagraph_mark_step_begin()
        try:
            outputs = self._compiled(images)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            raise ConfigError(_cannot_compile(mode, error)) from error
        # The next run of a CUDA graph overwrites the same memory.
        return self._tidy(outputs, images.device, copy=mode == "cuda-graphs")

    def _tidy(self, outputs: Any, device: torch.device, *, copy: bool = False) -> Any:
        # On CUDA the product of kernels and maps takes half precision and sums in float32.
        has_factors = type(self.model.head).mask_factors is not SOLOHeadBase.mask_factors
        dtype = None if device.type == "cuda" and has_factors else torch.float32
        is_read_as_is = device.type == "cpu" and self.model.head.has_mask_feature
        layout = torch.preserve_format if is_read_as_is else torch.contiguous_format
        return map_tensors(
            lambda x: x.to(dtype=dtype or x.dtype, memory_format=layout, copy=copy), outputs
        )

    def _run(self, images: Tensor) -> NetworkOutputs:
        if self.options.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        dtype = DTYPES[self.options.dtype]
        autocast = torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32)
        with autocast, self._convolutions or nullcontext():
            return type(self.model).network(self.model, images)


def _cannot_compile(mode: str, error: Exception) -> str:
    # torch 2.6 raises another error.
    if type(error).__name__ in (FailOnRecompileLimitHit.__name__, "RecompileLimitExceeded"):
        return (
            f"TEST.SPEED.COMPILE is {mode!r}, but there are more sizes of padded batches than torch"
            " compiles a function for (torch._dynamo.config.cache_size_limit): set it to 'dynamic'"
        )
    return f"TEST.SPEED.COMPILE is {mode!r}, but the network can't be compiled: {first_line(error)}"
