"""Backbones of timm with features of several strides, with an FPN."""

import difflib
from collections.abc import Sequence
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from solo_d2.modeling.backbones.pyramid import build_fpn, require_freezable, require_timm
from solo_d2.utils.errors import ConfigError, first_line

BUILDER = "build_solo_timm_fpn_backbone"
# Values of MODEL.TIMM.NORM.
NORMS = ("BN", "SyncBN", "FrozenBN", "EvalBN")


class TimmBackbone(Backbone):
    """A timm model with features named like those of Detectron2's ResNet.

    "res2" has stride 4, "res3" stride 8, and so on. Parameters keep timm's names, under `net`.

    Attributes:
        name: name of the model in timm.
        net: the model without its classifier.
        fixed_norms: names of BatchNorms in `net` that always use their running statistics.
    """

    def __init__(
        self,
        name: str,
        net: nn.Module,
        indices: Sequence[int],
        strides: Sequence[int],
        *,
        divisor: int,
        swap_channels: bool,
    ):
        """Wrap a model.

        Args:
            name: name of the model in timm.
            net: a timm model with `forward_intermediates`.
            indices: indices of the features, finest first.
            strides: strides of these features in pixels.
            divisor: divisor of the height and width of images.
            swap_channels: whether images are BGR; timm's models expect RGB.

        Raises:
            ConfigError: the features form no pyramid, or the model supports a single image size.
        """
        super().__init__()
        self.name, self.net, self.indices = name, net, list(indices)
        self.divisor, self.swap_channels = divisor, swap_channels
        self.fixed_norms: frozenset[str] = frozenset()
        first = strides[0].bit_length() - 1
        if list(strides) != [1 << (first + i) for i in range(len(strides))]:
            raise ConfigError(
                f"MODEL.TIMM.NAME is {name!r}, whose features have the strides {list(strides)}, "
                "but a pyramid needs powers of two, each twice the one before. For a plain ViT "
                "use MODEL.BACKBONE.NAME build_solo_vit_backbone"
            )
        self._out_features = [f"res{first + i}" for i in range(len(strides))]
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        features = self.trial()
        self._out_feature_channels = {key: value.shape[1] for key, value in features.items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the features of images (B, 3, H, W), by name."""
        if self.swap_channels:
            images = images.flip(1)
        features = cast(Any, self.net).forward_intermediates(
            images, indices=self.indices, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        if torch.compiler.is_compiling():
            # The layout after LayerNorms would specialize an export to even or odd sizes.
            features = [feature.contiguous() for feature in features]
        return dict(zip(self._out_features, features, strict=True))

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Set the mode, except for `fixed_norms`."""
        super().train(mode)
        for name in self.fixed_norms if mode else ():
            self.net.get_submodule(name).eval()
        return self

    def trial(self) -> dict[str, Tensor]:
        """Compute the features of a small black image, with their autograd graph.

        Raises:
            ConfigError: the model rejects the image, or the sizes of features do not match their
                strides.
        """
        size, strides = (2 * self.divisor, 3 * self.divisor), self._out_feature_strides
        device, training = next(self.parameters()).device, self.training
        self.eval()
        try:
            with torch.enable_grad():
                features = self(torch.zeros(1, 3, *size, device=device, requires_grad=True))
        except Exception as error:
            raise ConfigError(
                f"MODEL.TIMM.NAME is {self.name!r}, which timm cannot run on images of any size "
                f"(here of {size[0]}x{size[1]} pixels): {first_line(error)}"
            ) from error
        finally:
            self.train(training)
        found = {name: tuple(x.shape[-2:]) for name, x in features.items()}
        wanted = {name: (size[0] // x, size[1] // x) for name, x in strides.items()}
        if found != wanted:
            raise ConfigError(
                f"MODEL.TIMM.NAME is {self.name!r}, whose features of an image of {size[0]}x"
                f"{size[1]} pixels have the sizes {found}, which its strides do not divide"
            )
        return features

    def groups(self) -> dict[str, int]:
        """Return the block of each parameter of `net`, with 0 for the stem; {} if unknown."""
        from timm.models import group_parameters

        if not hasattr(self.net, "group_matcher"):
            return {}
        matcher = cast(Any, self.net).group_matcher(coarse=False)
        return cast(dict[str, int], group_parameters(self.net, matcher, reverse=True))

    def freeze(self, freeze_at: int, norm: str, read: Sequence[str]) -> None:
        """Freeze stages, BatchNorms and parameters that no used feature depends on.

        Args:
            freeze_at: 0 freezes nothing, 1 the stem, 2 also the layers of "res2", and so on.
            norm: one of `NORMS`.
            read: the features that are used.
        """
        behind = {key: self._parameters_behind(value) for key, value in self.trial().items()}
        used = set[str]().union(*(behind[feature] for feature in read))
        frozen = {name for name, group in self.groups().items() if group == 0 and freeze_at > 0}
        for level in range(2, freeze_at + 1):
            frozen |= behind.get(f"res{level}", set())
        fixed = []
        for name, module in self.net.named_modules():
            if isinstance(module, _BatchNorm):
                own = {f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)}
                if norm == "FrozenBN":
                    frozen |= own
                if norm in ("FrozenBN", "EvalBN") or own and own <= frozen:
                    fixed.append(name)
        for name, parameter in self.net.named_parameters():
            if name in frozen or name not in used:
                parameter.requires_grad_(False)
        self.fixed_norms = frozenset(fixed)
        self.train(self.training)

    def _parameters_behind(self, feature: Tensor) -> set[str]:
        """Return the parameters of `net` that a feature depends on."""
        names = {id(parameter): name for name, parameter in self.net.named_parameters()}
        leaves = (id(getattr(node, "variable", None)) for node in graph_nodes(feature.grad_fn))
        return {names[leaf] for leaf in leaves if leaf in names}


def graph_nodes(last: Any) -> set[Any]:
    """Return all nodes of an autograd graph, given the `grad_fn` of a tensor."""
    found: set[Any] = set()
    left = [last]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left.extend(following for following, _ in node.next_functions)
    return found


@BACKBONE_REGISTRY.register()
def build_solo_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a timm model with features "res2" (stride 4) to "res5" (stride 32), and an FPN.

    MODEL.BACKBONE.FREEZE_AT: 0 nothing, 1 the stem, 2 also the layers of "res2", and so on.

    Args:
        cfg: MODEL.TIMM, MODEL.FPN, MODEL.BACKBONE.FREEZE_AT and INPUT.FORMAT are read.
        input_shape: channels of the images.

    Raises:
        ConfigError: timm is missing, has no such model, or the features of MODEL.FPN.IN_FEATURES
            form no pyramid.
    """
    keys = cfg.MODEL.TIMM
    require_timm(f"MODEL.TIMM.NAME {keys.NAME!r}")
    require_model(keys.NAME)
    features = _create_features(cfg, input_shape.channels)
    strides = features.feature_info.reduction()
    names = [f"res{stride.bit_length() - 1}" for stride in strides]
    require_freezable(cfg, strides[-1].bit_length() - 1)
    last = cfg.MODEL.FPN.IN_FEATURES[-1:]
    if last and last[0] in names[:-1]:  # skip unused stages
        indices = tuple(range(names.index(last[0]) + 1))
        features = _create_features(cfg, input_shape.channels, out_indices=indices)
    net = features.model
    if keys.NORM == "SyncBN":
        from timm.layers import convert_sync_batchnorm

        net = convert_sync_batchnorm(net)
    bottom_up = TimmBackbone(
        keys.NAME,
        net,
        features.out_indices,
        features.feature_info.reduction(),
        divisor=strides[-1],
        swap_channels=cfg.INPUT.FORMAT == "BGR",
    )
    fpn = build_fpn(cfg, bottom_up)
    fpn._size_divisibility = strides[-1]  # some models compute unused stages too
    laterals = zip(fpn.in_features, fpn.lateral_convs[::-1], strict=True)
    read = [name for name, lateral in laterals if lateral.weight.requires_grad]
    bottom_up.freeze(cfg.MODEL.BACKBONE.FREEZE_AT, keys.NORM, read)
    return fpn


def require_model(name: str) -> None:
    """Raise a ConfigError if timm has no model of this name, listing similar names."""
    import timm

    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        kind, near = "model", difflib.get_close_matches(architecture, known, n=5)
    elif tag and name not in (tags := timm.list_models(f"{architecture}.*", pretrained=True)):
        kind, near = "weights", tags
    else:
        return
    raise ConfigError(
        f"MODEL.TIMM.NAME is {name!r}, but timm {timm.__version__} has no such {kind}"
        + (f". Similar: {', '.join(near)}" if near else " (timm.list_models() lists the names)")
    )


def _create_features(cfg: CfgNode, channels: int, **options: Any) -> Any:
    """Create a timm model with random weights, in timm's wrapper for its features."""
    import timm

    name, rate = cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.DROP_PATH_RATE
    options |= {"features_only": True, "feature_cls": "getter", "in_chans": channels}
    if rate > 0:
        options["drop_path_rate"] = rate
    try:
        # Otherwise models with attention windows support a single image size.
        return timm.create_model(name, strict_img_size=False, **options)
    except TypeError as error:
        if "strict_img_size" not in str(error):
            raise
    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise ConfigError(
            f"MODEL.TIMM.DROP_PATH_RATE is {rate}, but must be 0.0: {name} has no drop path"
        ) from error


def pixel_statistics(cfg: CfgNode) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of image channels, for values in [0, 255].

    Those of the timm model, in the order of INPUT.FORMAT, with MODEL.TIMM.OWN_NORMALIZATION; else
    MODEL.PIXEL_MEAN and MODEL.PIXEL_STD.
    """
    if not uses_own_statistics(cfg):
        return cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    from timm.models import get_pretrained_cfg

    own: Any = get_pretrained_cfg(cfg.MODEL.TIMM.NAME)
    step = -1 if cfg.INPUT.FORMAT == "BGR" else 1
    mean, std = ([round(255 * x, 4) for x in values[::step]] for values in (own.mean, own.std))
    return mean, std


def uses_own_statistics(cfg: CfgNode) -> bool:
    """Return whether images are normalized for the timm model, not by MODEL.PIXEL_MEAN."""
    return bool(cfg.MODEL.BACKBONE.NAME == BUILDER and cfg.MODEL.TIMM.OWN_NORMALIZATION)


def timm_backbone(model: nn.Module) -> TimmBackbone | None:
    """Return the backbone of a model if it is a timm model, else None."""
    bottom_up = getattr(getattr(model, "backbone", None), "bottom_up", None)
    return bottom_up if isinstance(bottom_up, TimmBackbone) else None
