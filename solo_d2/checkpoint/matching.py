"""Whether weights fit a model: all that the format should hold is there, and nothing else."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from solo_d2.checkpoint.formats import COUNTERS, Format
from solo_d2.utils.errors import ConfigError

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
        # As short patterns, the first two parts of each name: "head.class_logits.*".
        parts = [(name, name.split(".")[:-1][:2]) for name in differing]
        patterns = {".".join([*part, "*"]) if part else name for name, part in parts}
        allow = f'MODEL.WEIGHTS_ALLOW "{sorted(patterns)}"'
        if set(differing) <= _CLASS_LAYER and _CLASS_LAYER <= set(self.shapes):
            found, wanted = (shape[0] for shape in self.shapes[min(_CLASS_LAYER)])
            return (
                f"they are for {found} classes, but the model has {wanted}: set "
                f"MODEL.SOLO.NUM_CLASSES to {found}, or take the config saved beside them; to "
                f"train {wanted} classes from them, {allow} starts the last layer anew"
            )
        shapes = [f"{name} {a} instead of {b}" for name, (a, b) in self.shapes.items()]
        problems = (
            (shapes, "parameters have other shapes than the model's"),
            (self.missing, "parameters of the model are not in them"),
            (self.unexpected, "of their parameters are not in the model"),
        )
        texts = [f"{len(names)} {text}: {_listed(names)}" for names, text in problems if names]
        return f"{'; '.join(texts)}. Where that is wanted: {allow}"


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
    one_sided = [n for n in (*model, *state) if (n in model) != (n in state)]
    one_sided = [name for name in one_sided if not re.fullmatch(COUNTERS, name)]
    lacking = [name for name in one_sided if name in model]
    return Match(
        loadable={k: v for k, v in state.items() if k in model and k not in shapes},
        missing=[name for name in lacking if required(name)],
        unexpected=[name for name in one_sided if name in state and not allowed(name)],
        shapes={name: pair for name, pair in shapes.items() if not allowed(name)},
        fresh=[
            *(name for name in lacking if not required(name)),
            *(name for name in shapes if allowed(name)),
        ],
    )


def load_matching(
    model: nn.Module, state: Mapping[str, Tensor], source: Format | None, *, allow: Sequence[str]
) -> list[str]:
    """Load weights into a model, or nothing if they do not fit; for the arguments see `match`.

    Returns:
        Names of the parameters that keep their start.

    Raises:
        ConfigError: the weights do not fit.
    """
    found = match(state, model.state_dict(), source, allow=allow)
    problem = found.problem()
    if problem:
        raise ConfigError(problem)
    model.load_state_dict(found.loadable, strict=False)
    return found.fresh


def _listed(items: Sequence[str]) -> str:
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
