"""ResNets of torchvision (ImageNet): their names in Detectron2's ResNet.

Their inputs are RGB, divided by 255 and normalised with ImageNet's mean and deviation: use
INPUT.FORMAT "RGB", the mean and deviation of configs/base/solov2_light_448_coco.yaml, and
RESNETS.STRIDE_IN_1X1 False.
"""

import re
from collections.abc import Mapping

from torch import Tensor

# Ours by theirs, as regular expressions; the first that matches the whole name is taken.
_NAMES = (
    (r"conv1\.(.*)", r"stem.conv1.\1"),
    (r"bn1\.(.*)", r"stem.conv1.norm.\1"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.(.*)", r"res{stage}.\2.conv\3.\4"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(.*)", r"res{stage}.\2.conv\3.norm.\4"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.(.*)", r"res{stage}.\2.shortcut.\3"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(.*)", r"res{stage}.\2.shortcut.norm.\3"),
)


def is_torchvision_resnet(state: Mapping[str, object]) -> bool:
    """Whether a state dict is a ResNet of torchvision, told by its keys."""
    return {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight"} <= set(state)


def convert_torchvision_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of a torchvision ResNet.

    Args:
        state: as torchvision saves it.

    Returns:
        The same tensors under Detectron2's names, without prefix; the classifier and the counters
        of BatchNorm are left out.

    Raises:
        ValueError: a key is none of a ResNet's.
    """
    converted = {}
    for key, value in state.items():
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked"):
            converted[_rename(key)] = value
    return converted


def _rename(key: str) -> str:
    for theirs, ours in _NAMES:
        match = re.fullmatch(theirs, key)
        if match:
            # layer1 is res2.
            stage = int(match[1]) + 1 if "{stage}" in ours else 0
            return match.expand(ours.replace("{stage}", str(stage)))
    raise ValueError(f"{key!r} is no parameter of a torchvision ResNet")
