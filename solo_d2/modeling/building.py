"""Building parts of a model from a config: what cannot be built is a ConfigError."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY
from torch.overrides import TorchFunctionMode

from solo_d2.config.rules import MOST_NUMBERS_OF_TENSOR
from solo_d2.utils.errors import ConfigError, DatasetError, first_line
from solo_d2.utils.user_code import from_user_code, is_of_user, note_part

# Numbers that the layers of a part may have in all. The largest backbones of Detectron2 have 0.7
# billion. More is refused before it takes memory.
MOST_NUMBERS = 1_000_000_000
OF_USER = ("MODEL.BACKBONE",)
# The functions by which layers take memory.
_ALLOCATING = (
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn),
    *(torch.arange, torch.linspace),
)


@contextlib.contextmanager
def building(part: str, *sections: str, by: Callable[..., Any] | None = None) -> Iterator[None]:
    """Turn what goes wrong while a part is built into a ConfigError, and bound its size.

    Args:
        part: what is built, for the message.
        *sections: of the config, which describe it.
        by: registered class or function that builds it.

    Raises:
        ConfigError: the part is too large, or its settings do not fit each other.
        DatasetError: the code that builds the part raised it.
        Exception: code of the user builds the part, or is called for it, and raised this.
    """
    described = f"The {part} that {' and '.join(sections)} describe"
    with refusing(described, by), SizeLimit(described):
        yield


@contextlib.contextmanager
def refusing(described: str, by: Callable[..., Any] | None = None) -> Iterator[None]:
    """Turn what libraries raise into a ConfigError, for settings that they have to judge.

    Detectron2 and torch have no common error for settings that do not fit each other. What code of
    the user raises keeps its traceback.

    Args:
        described: what cannot be built then.
        by: class or function that builds it. What is raised for one of the user concerns its
            author, also where Detectron2 raises it, as for wrong arguments.
    """
    try:
        yield
    except (ConfigError, DatasetError):
        raise
    except Exception as error:
        if from_user_code(error) or (by is not None and is_of_user(by)):
            note_part(error, f"{described} cannot be built")
            raise
        raise ConfigError(f"{described} cannot be built: {first_line(error)}") from error


def backbone_sections(cfg: CfgNode) -> tuple[str, ...]:
    """The sections of a config that describe its backbone, by the backbone's name.

    What a backbone of the user reads is not known: then these are `OF_USER`.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name not in BACKBONE_REGISTRY or is_of_user(BACKBONE_REGISTRY.get(name)):
        return OF_USER
    kind = next((kind for kind in ("SWIN", "VIT", "REGNET") if kind.lower() in name), "RESNETS")
    return "MODEL.BACKBONE", f"MODEL.{kind}", "MODEL.FPN"


class SizeLimit(TorchFunctionMode):
    """Raises a ConfigError before torch makes layers that are too large, or without channels."""

    def __init__(self, described: str) -> None:
        """Start to count.

        Args:
            described: what is built, for the message.
        """
        super().__init__()
        self.described = described
        self.num_numbers = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ALLOCATING:
            planned = func(*args, **{**kwargs, "device": "meta"})  # has a size, but no memory
            self._count(planned.numel(), tuple(planned.shape))
        return func(*args, **kwargs)

    def _count(self, num_numbers: int, shape: tuple[int, ...]) -> None:
        self.num_numbers += num_numbers
        if num_numbers == 0:
            raise ConfigError(f"{self.described} would have a layer of {shape}, without any number")
        if num_numbers > MOST_NUMBERS_OF_TENSOR or self.num_numbers > MOST_NUMBERS:
            raise ConfigError(
                f"{self.described} would have a layer of {shape} and {self.num_numbers:,} numbers "
                f"with those before it; at most {MOST_NUMBERS_OF_TENSOR:,} of a layer and "
                f"{MOST_NUMBERS:,} in all are allowed"
            )
