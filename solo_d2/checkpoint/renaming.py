"""What a source format is, and how its names become ours."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

# Pairs of a regular expression for a whole name of theirs, and ours. In ours {1} is the first
# group, {1+2} that number plus 2, {1/3} that number divided by 3.
Names = tuple[tuple[str, str], ...]

# BatchNorm counts the batches it has seen; only its training with momentum None reads that.
COUNTERS = r".*num_batches_tracked"

# What the normalisation of ImageNet is called where images are RGB in [0, 255].
RGB_INPUTS = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
}
# And where they are BGR: Detectron2's defaults.
BGR_INPUTS = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
}


@dataclass(frozen=True)
class Format:
    """A source of weights.

    Attributes:
        title: what it is called in messages.
        marks: regular expressions; a file is of this format if each matches one of its names.
        names: their names and ours. A name that is in no pair is kept.
        ignored: regular expressions of names that mean nothing to our models.
        whole: whether it holds whole models, rather than backbones.
        settings: config keys whose values do not show in the weights, and what they must be.
        absent: regular expressions of our names that the format lacks, which keep their start.
        counters: whether it has the counters of BatchNorm under our names.
    """

    title: str
    marks: tuple[str, ...]
    names: Names
    ignored: tuple[str, ...] = ()
    whole: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    counters: bool = False

    def matches(self, state: Mapping[str, Any]) -> bool:
        """Return whether a state dict is of this format, by its names."""
        return all(any(re.fullmatch(mark, name) for name in state) for mark in self.marks)

    def convert(self, state: Mapping[str, Tensor]) -> "Conversion":
        """Rename the parameters.

        Args:
            state: as the source saves it.

        Raises:
            ValueError: two parameters would get one name.
        """
        converted: dict[str, Tensor] = {}
        origins: dict[str, str] = {}
        ignored = []
        without = self.ignored if self.counters else (*self.ignored, COUNTERS)
        for name, value in state.items():
            if any(re.fullmatch(pattern, name) for pattern in without):
                ignored.append(name)
                continue
            ours = self._rename(name)
            if ours in origins:
                raise ValueError(f"{origins[ours]} and {name} are both {ours}")
            converted[ours], origins[ours] = value, name
        return Conversion(converted, origins, tuple(ignored))

    def _rename(self, name: str) -> str:
        for theirs, ours in self.names:
            match = re.fullmatch(theirs, name)
            if match:
                return _expand(ours, match)
        return name


@dataclass(frozen=True)
class Conversion:
    """Weights under our names.

    Attributes:
        state: the parameters by our names; a name that the format does not know is theirs.
        origins: their name of each.
        ignored: names of theirs that were left out.
    """

    state: dict[str, Tensor]
    origins: dict[str, str]
    ignored: tuple[str, ...]


def _expand(template: str, match: re.Match[str]) -> str:
    def value(place: re.Match[str]) -> str:
        text = match[int(place[1])]
        if place[2] == "+":
            return str(int(text) + int(place[3]))
        return str(int(text) // int(place[3])) if place[2] == "/" else text

    return re.sub(r"\{(\d)(?:([+/])(\d))?\}", value, template)
