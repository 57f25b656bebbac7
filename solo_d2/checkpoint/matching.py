"""Whether weights fit a model: all that the format should hold is there, and nothing else."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor

from solo_d2.checkpoint.renaming import COUNTERS, Format

# What a backbone's weights must fill: not the pyramid on top, nor offsets that are only learnt with
# the detector.
_BACKBONE = r"backbone\.(bottom_up|net)\.(?!.*\.offset\.).*"
# The layer whose shape depends on the number of classes.
_CLASS_LAYER = {"head.class_logits.bias", "head.class_logits.weight"}
_SHOWN = 3


@dataclass(frozen=True)
class Match:
    """How weights fit a model, after what may differ was taken out.

    Attributes:
        loadable: the parameters that the model takes.
        missing: parameters of the model that the weights lack.
        unexpected: parameters of the weights that the model lacks.
        shapes: by name, the shape in the weights and in the model where they differ.
        fresh: parameters of the model that rightly keep their start; not counters of BatchNorm.
    """

    loadable: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    fresh: list[str]

    def problem(self) -> str:
        """What does not fit, on one line, with the cure; "" if all does."""
        differing = [*self.shapes, *self.missing, *self.unexpected]
        if not differing:
            return ""
        if not self.loadable and not self.shapes:
            return (
                "they have no parameter of the model, and no format that is known; theirs are "
                f"{_listed(self.unexpected)}"
            )
        allow = f'MODEL.WEIGHTS_ALLOW "{_patterns(differing)}"'
        if set(differing) <= _CLASS_LAYER and _CLASS_LAYER <= set(self.shapes):
            found, wanted = (shape[0] for shape in self.shapes[min(_CLASS_LAYER)])
            return (
                f"they are for {found} classes, but the model has {wanted}: set "
                f"MODEL.SOLO.NUM_CLASSES to {found}, or take the config saved beside them; to "
                f"train {wanted} classes from them, {allow} starts the last layer anew"
            )
        shapes = [f"{name} {a} instead of {b}" for name, (a, b) in self.shapes.items()]
        parts = (
            (shapes, "parameters have other shapes than the model's"),
            (self.missing, "parameters of the model are not in them"),
            (self.unexpected, "of their parameters are not in the model"),
        )
        problems = "; ".join(
            f"{len(names)} {text}: {_listed(names)}" for names, text in parts if names
        )
        return f"{problems}. Where that is wanted: {allow}"


def match(
    state: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
    source: Format | None,
    *,
    allow: Sequence[str] = (),
) -> Match:
    """Compare weights with a model.

    Args:
        state: the weights, by our names.
        model: the model's state dict.
        source: their format; None requires the whole model.
        allow: patterns ("*" for any characters) of names that may be missing, left over or of
            another shape; they are not loaded.
    """

    def allowed(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in allow)

    def counts(name: str) -> bool:
        return re.fullmatch(COUNTERS, name) is not None

    def required(name: str) -> bool:
        if allowed(name):
            return False
        if source is None:
            return True
        absent = any(re.fullmatch(pattern, name) for pattern in source.absent)
        return not absent and (source.whole or re.fullmatch(_BACKBONE, name) is not None)

    shapes = {
        name: (tuple(value.shape), tuple(model[name].shape))
        for name, value in state.items()
        if name in model and value.shape != model[name].shape
    }
    lacking = [name for name in model if name not in state and not counts(name)]
    left_over = [name for name in state if name not in model and not counts(name)]
    return Match(
        loadable={k: v for k, v in state.items() if k in model and k not in shapes},
        missing=[name for name in lacking if required(name)],
        unexpected=[name for name in left_over if not allowed(name)],
        shapes={name: pair for name, pair in shapes.items() if not allowed(name)},
        fresh=[
            *(name for name in lacking if not required(name)),
            *(name for name in shapes if allowed(name)),
        ],
    )


def _listed(items: Sequence[str]) -> str:
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _patterns(names: Sequence[str]) -> list[str]:
    """Short patterns that cover the names: their first two parts, as in "head.class_logits.*"."""
    parts = (name.split(".")[:-1][:2] for name in names)
    return sorted(
        {".".join([*part, "*"]) if part else name for part, name in zip(parts, names, strict=True)}
    )
