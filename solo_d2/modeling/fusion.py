"""Folding of BatchNorms into the preceding convolutions, for inference."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone import regnet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from solo_d2.modeling.backbones.timm import TimmBackbone, graph_nodes

NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)
# Modules of Detectron2 whose children run in order of registration, each norm after its
# convolution. Other convolutions contain their norm.
NORM_AFTER_CONV = (regnet.SimpleStem, regnet.ResBottleneckBlock, regnet.BottleneckTransform)


def fuse_batch_norms(model: nn.Module) -> int:
    """Fold each BatchNorm that follows a convolution into its weights and bias, in place.

    Supports convolutions of Detectron2 and this project, RegNet blocks and timm models, with frozen
    norms or not. Norms without running statistics are kept.

    Args:
        model: model in eval mode; it can't be trained afterwards.

    Returns:
        The number of folded norms.
    """
    count = sum(map(_fold_of_timm, [x for x in model.modules() if isinstance(x, TimmBackbone)]))
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _fold(module, getattr(module, "norm", None)):
            module.norm = None  # type: ignore[assignment]
            count += 1
        elif isinstance(module, NORM_AFTER_CONV):
            children = list(module.named_children())
            for (_, conv), (name, norm) in zip(children, children[1:], strict=False):
                if isinstance(conv, nn.Conv2d) and _fold(conv, norm):
                    setattr(module, name, nn.Identity())
                    count += 1
    return count


def _fold_of_timm(backbone: TimmBackbone) -> int:
    """Reparameterize timm's blocks, and fold norms that are the only use of a convolution.

    The autograd graph of a small image shows these, since timm's blocks have no common structure.
    """
    from timm.utils.model import reparameterize_model

    reparameterize_model(backbone.net, inplace=True).requires_grad_(False)
    makers: dict[Any, list[nn.Conv2d]] = {}
    readers: dict[str, list[Any]] = {}

    def note_conv(conv: Any, _: Any, output: Tensor) -> None:
        makers.setdefault(output.grad_fn, []).append(conv)

    def noting(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _, inputs: readers.setdefault(name, []).append(inputs[0].grad_fn)

    hooks = []
    for name, module in backbone.net.named_modules():
        # Not subclasses, which may standardize their weights.
        if type(module).__name__ in ("Conv2d", "Conv2dSame"):
            hooks.append(module.register_forward_hook(note_conv))
        elif isinstance(module, NORMS):
            hooks.append(module.register_forward_pre_hook(noting(name)))
    outputs = [feature.grad_fn for feature in backbone.trial().values()]
    for hook in hooks:
        hook.remove()
    nodes = set[Any]().union(*(graph_nodes(node) for node in outputs))
    uses = Counter([x for node in nodes for x, _ in node.next_functions] + outputs)
    calls = Counter(conv for made in makers.values() for conv in made)
    count = 0
    for name, inputs in readers.items():
        made = makers.get(inputs[0], [])
        once = len(inputs) == len(made) == 1 and calls[made[0]] == uses[inputs[0]] == 1
        norm: Any = backbone.net.get_submodule(name)
        if once and _fold(made[0], norm):
            parts = [x for x in (getattr(norm, "drop", None), getattr(norm, "act", None)) if x]
            backbone.net.set_submodule(name, nn.Sequential(*parts) if parts else nn.Identity())
            count += 1
    return count


def _fold(conv: nn.Conv2d, norm: Any) -> bool:
    """Fold a norm into a convolution if possible; return whether it was folded."""
    if not isinstance(norm, NORMS) or norm.running_var is None:
        return False
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,  # type: ignore[arg-type]
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    return True
