"""Inference of a model's config from the names and shapes of its weights and saved metadata.

Settings that do not affect names or shapes (SOLOv2's grids, scale ranges, sizes of test images)
can't be inferred.
"""

import ast
import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

# Depth by whether a ResNet has bottlenecks, and by the blocks of its stages.
_DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
_RESNET = "backbone.bottom_up."
_HEADS = {
    "kernel_params.weight": "SOLOv2Head",
    "mask_logits.0.weight": "SOLOHead",
    "column_tower.0.weight": "DecoupledSOLOHead",
    "column_logits.0.weight": "DecoupledSOLOLightHead",
}


def derive_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the config keys that the weights of a SOLO model or a ResNet determine.

    Args:
        state: weights of a SOLO model with a ResNet-FPN, or of a ResNet alone, by our names.

    Raises:
        ValueError: the weights are of another model; the message says why.
    """
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if any(name.startswith("semantic_branch.") for name in shapes):
        raise ValueError("the config of a panoptic model can't be inferred from its weights")
    keys = _resnet(shapes)
    if "backbone.fpn_output2.weight" in shapes:
        keys["MODEL.FPN.OUT_CHANNELS"] = shapes["backbone.fpn_output2.weight"][0]
    head = {k.removeprefix("head."): v for k, v in shapes.items() if k.startswith("head.")}
    if head:
        keys |= _head(head, keys["MODEL.FPN.OUT_CHANNELS"])
    return keys


def _resnet(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    names = [name.removeprefix(_RESNET) for name in shapes if name.startswith(_RESNET)]
    blocks = {tuple(name.split(".")[:2]) for name in names if name.startswith("res")}
    counts = tuple(sum(stage == f"res{n}" for stage, _ in blocks) for n in (2, 3, 4, 5))
    bottleneck = "res2.0.conv3.weight" in names
    if (bottleneck, counts) not in _DEPTHS:
        raise ValueError(
            f"their backbone is no ResNet with 18, 34, 50, 101 or 152 layers: {counts}"
        )

    def shape(name: str) -> tuple[int, ...]:
        return shapes[f"{_RESNET}{name}.weight"]

    # A stage is deformable as a whole.
    offsets = [f"res{n}.0.conv2.offset" for n in (2, 3, 4, 5)]
    deform = [f"{name}.weight" in names for name in offsets]
    kinds = {_kind(shape(name), 3) for name, on in zip(offsets, deform, strict=True) if on}
    if len(kinds) > 1:
        raise ValueError("their backbone has deformable convolutions of two kinds")
    width = shape("res2.0.conv1")[0]
    groups = width // shape("res2.0.conv2")[1] if bottleneck else 1
    return {
        "MODEL.META_ARCHITECTURE": "SOLO",
        "MODEL.BACKBONE.NAME": "build_solo_resnet_fpn_backbone",
        "MODEL.RESNETS.DEPTH": _DEPTHS[bottleneck, counts],
        "MODEL.RESNETS.NUM_GROUPS": groups,
        "MODEL.RESNETS.WIDTH_PER_GROUP": width // groups,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": shape("stem.conv1")[0],
        "MODEL.RESNETS.RES2_OUT_CHANNELS": shape(f"res2.0.conv{3 if bottleneck else 2}")[0],
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": deform,
        "MODEL.RESNETS.DEFORM_MODULATED": kinds == {"v2"},
    }


def _kind(shape: tuple[int, ...], side: int) -> str:
    """Return the version of a deformable convolution, by the shape of its offset weights."""
    kinds = {2 * side**2: "v1", 3 * side**2: "v2"}
    if shape[0] not in kinds:
        raise ValueError(
            f"a deformable convolution has {shape[0]} offset channels: only one group is supported"
        )
    return kinds[shape[0]]


def _head(shapes: Mapping[str, tuple[int, ...]], in_channels: int) -> dict[str, Any]:
    """Return the keys of MODEL.SOLO; the names here lack the prefix "head."."""
    name = next((head for mark, head in _HEADS.items() if mark in shapes), None)
    if name is None:
        raise ValueError("their head is no SOLO head")
    dim = shapes["class_tower.0.weight"][0]
    depth = _length(shapes, "class_tower")
    offsets = [f"class_tower.{i}.offset.weight" for i in range(depth)]
    offsets = [offset for offset in offsets if offset in shapes]
    keys = {
        "MASK_TARGET": "mask",
        "NUM_CLASSES": shapes["class_logits.weight"][0],
        "HEAD.NAME": name,
        "HEAD.NUM_CONVS": depth,
        "HEAD.CONV_DIM": dim,
        "HEAD.NORM": _norm(shapes, "class_tower.0"),
        "HEAD.DEFORM": _kind(shapes[offsets[0]], 3) if offsets else "",
    }
    if offsets:
        keys["HEAD.NUM_DEFORM_CONVS"] = len(offsets)
    if name == "SOLOv2Head":
        keys |= _kernels_and_mask_feature(shapes, in_channels)
    else:
        tower, axes = (
            ("column_tower", 1) if "column_tower.0.weight" in shapes else ("mask_tower", 2)
        )
        widths = [in_channels] + [dim] * (depth - 1)
        seen = [shapes[f"{tower}.{i}.weight"][1] - width for i, width in enumerate(widths)]
        keys["HEAD.NUM_COORD_CONVS"] = sum(extra == axes for extra in seen)
        last = "mask_logits" if name == "SOLOHead" else "column_logits"
        grids = [shapes[f"{last}.{k}.weight"][0] for k in range(_length(shapes, last))]
        keys["NUM_GRIDS"] = [math.isqrt(n) for n in grids] if name == "SOLOHead" else grids
    return {f"MODEL.SOLO.{key}": value for key, value in keys.items()}


def _kernels_and_mask_feature(
    shapes: Mapping[str, tuple[int, ...]], in_channels: int
) -> dict[str, Any]:
    out = shapes["mask_feature.output.weight"][0]
    unified = "mask_feature.levels.0.0.weight" in shapes
    keys: dict[str, Any] = {
        "HEAD.KERNEL_SIZE": math.isqrt(shapes["kernel_params.weight"][0] // out),
        "HEAD.KERNEL_COORDS": shapes["kernel_tower.0.weight"][1] > in_channels,
        "MASK_FEATURE.TYPE": "unified" if unified else "separate",
        "MASK_FEATURE.CONV_DIM": shapes["mask_feature.output.weight"][1],
        "MASK_FEATURE.OUT_CHANNELS": out,
    }
    first = "mask_feature.tower.0.weight"
    if unified:
        levels = _length(shapes, "mask_feature.levels")
        first = f"mask_feature.levels.{levels - 1}.0.weight"
        keys["MASK_FEATURE.IN_FEATURES"] = [f"p{n}" for n in range(2, 2 + levels)]
    else:
        keys["MASK_FEATURE.NUM_CONVS"] = _length(shapes, "mask_feature.tower")
    keys["MASK_FEATURE.COORDS"] = shapes[first][1] > in_channels
    offset = "mask_feature.output.offset.weight"
    keys["MASK_FEATURE.DEFORM"] = _kind(shapes[offset], 1) if offset in shapes else ""
    return keys


def _length(shapes: Mapping[str, Any], name: str) -> int:
    """Return the length of a list of modules."""
    places = name.count(".") + 1
    return len({key.split(".")[places] for key in shapes if key.startswith(f"{name}.")})


def _norm(shapes: Mapping[str, Any], conv: str) -> str:
    if f"{conv}.norm.weight" not in shapes:
        return ""
    return "BN" if f"{conv}.norm.running_mean" in shapes else "GN"


def class_names(checkpoint: Mapping[str, Any]) -> list[str]:
    """Return the class names that mmcv or mmengine saved with the weights; [] if there are none."""
    meta = _mapping(checkpoint, "meta")
    for holder in (meta, _mapping(meta, "dataset_meta")):
        for key in ("CLASSES", "classes"):
            names = holder.get(key)
            if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
                return list(names)
    return []


def _mapping(holder: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = holder.get(key)
    return found if isinstance(found, Mapping) else {}


def settings_in_text(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return grids and scale ranges from the text of an mmcv config saved with the weights."""
    meta = _mapping(checkpoint, "meta")
    text = next((meta[key] for key in ("config", "cfg") if isinstance(meta.get(key), str)), "")
    found = {}
    for name, key in (("num_grids", "NUM_GRIDS"), ("scale_ranges", "SCALE_RANGES")):
        match = re.search(rf"\b{name}\s*=\s*([\[(][\d\s,.\[\]()]*[\])])", text)
        if match:
            try:
                value = ast.literal_eval(match[1])
            except (SyntaxError, ValueError):
                continue
            nested = [list(item) if isinstance(item, tuple) else item for item in value]
            found[f"MODEL.SOLO.{key}"] = nested
    return found
