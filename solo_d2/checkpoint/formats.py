"""All source formats. A new one: its key table in a file of its own, and its place in this list."""

from collections.abc import Mapping
from typing import Any

from solo_d2.checkpoint.adelaidet import ADELAIDET
from solo_d2.checkpoint.mmdetection import MMDETECTION, MMDETECTION_DETECTOR, SOLO_AUTHORS
from solo_d2.checkpoint.renaming import Format
from solo_d2.checkpoint.torchvision import TORCHVISION
from solo_d2.checkpoint.zoo import CAFFE2, DETECTOR, OWN, RESNET

# The first that matches is taken.
FORMATS = (
    OWN,
    ADELAIDET,
    SOLO_AUTHORS,
    MMDETECTION,
    DETECTOR,
    MMDETECTION_DETECTOR,
    TORCHVISION,
    RESNET,
    CAFFE2,
)


def recognise(state: Mapping[str, Any]) -> Format | None:
    """The format of a state dict, told by its names; None if none fits."""
    return next((source for source in FORMATS if source.matches(state)), None)
