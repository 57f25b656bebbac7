"""Comparison of weights with a model: missing, unexpected and mismatched parameters."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from solo_d2.checkpoint.formats import COUNTERS, Format
from solo_d2.utils.errors import ConfigError, listed

# Parameters that a backbone's weights must contain: neither the pyramid nor offsets, which are
# trained with the detector only.
_BACKBONE = r"backbone\.(bottom_up|net)\.(?!.*\.offset\.).*"
# The layer whose shape depends on the number of classes.
CLASS_LAYER = {"head.class_logits.bias", "head.class_logits.weight"}


@dataclass(frozen=True)
class Match:
    """Result of comparing weights with a model, without allowed differences.

    Attributes:
        loadable: parameters that can be loaded.
        missing: parameters of the model that the weights lack.
        unexpected: parameters of the weights that the model lacks.
        shapes: by name, differing shapes in the weights and in the model.
        fresh: parameters that may keep their initial values; not counters of BatchNorm.
    """

    loadable: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    fresh: list[str]

    def problem(self, *, can_allow: bool = True) -> str:
        """Describe what does not fit, and how to fix it, on one line; "" if everything fits.

        Without `can_allow`, MODEL.WEIGHTS_ALLOW is not read, so it is no remedy.
        """
        differing = [*self.shapes, *self.missing, *self.unexpected]
        if not differing:
            return ""
        if not self.loadable and not self.shapes:
            return (
                "they have no parameter of the model and no known format; their parameters are "
                f"{listed(self.unexpected, 3)}"
            )
        # Short patterns of the first two parts of each name: "head.class_logits.*".
        parts = [(name, name.split(".")[:-1][:2]) for name in differing]
        patterns = {".".join([*part, "*"]) if part else name for name, part in parts}
        allow = f'MODEL.WEIGHTS_ALLOW "{sorted(patterns)}"'
        if set(differing) <= CLASS_LAYER and CLASS_LAYER <= set(self.shapes):
            found, wanted = (shape[0] for shape in self.shapes[min(CLASS_LAYER)])
            return (
                f"they have {found} classes, but the model has {wanted}: set "
                f"MODEL.SOLO.NUM_CLASSES to {found}, or use the config saved beside them; to train "
                f"{wanted} classes from them, reinitialize the last layer with {allow}"
            )
        shapes = [f"{name} {a} instead of {b}" for name, (a, b) in self.shapes.items()]
        problems = (
            (shapes, "parameters have other shapes than the model's"),
            (self.missing, "parameters of the model are not in them"),
            (self.unexpected, "of their parameters are not in the model"),
        )
        texts = [f"{len(names)} {text}: {listed(names, 3)}" for names, text in problems if names]
        return "; ".join(texts) + (f". To allow this: {allow}" if can_allow else "")


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
        allow: patterns ("*" for any characters) of parameters that may be missing, unexpected or of
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
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: Format | None,
    *,
    allow: Sequence[str] | None,
) -> list[str]:
    """Load weights into a model, or nothing if they do not fit.

    Args:
        model: the model.
        state: see `match`.
        source: see `match`.
        allow: see `match`; None if the user cannot allow differences.

    Returns:
        Names of the parameters that keep their initial values.

    Raises:
        ConfigError: the weights do not fit.
    """
    found = match(state, model.state_dict(), source, allow=allow or ())
    problem = found.problem(can_allow=allow is not None)
    if problem:
        raise ConfigError(problem)
    model.load_state_dict(found.loadable, strict=False)
    return found.fresh
