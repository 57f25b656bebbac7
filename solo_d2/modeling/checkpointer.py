"""Detectron2's checkpointer, which also reads the weights of other projects."""

import pickle
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer

from solo_d2.checkpoints.torchvision import convert_torchvision_resnet, is_torchvision_resnet
from solo_d2.errors import ConfigError

# What a file or address that is no checkpoint makes Detectron2, torch and the network raise.
_LOAD_ERRORS = (
    *(OSError, EOFError, ValueError, LookupError, AttributeError, TypeError),
    *(AssertionError, RuntimeError, pickle.UnpicklingError),
)


class SOLOCheckpointer(DetectionCheckpointer):
    """Recognises by its keys what a file holds, and renames it to this project's names.

    Files are read with `torch.load(weights_only=True)`, which runs no code of theirs; a `.pkl` of
    Detectron2's model zoo is a pickle and must come from a source you trust.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint, as Detectron2 does.

        Args:
            path: file or URL; "" loads nothing.
            *args: as Detectron2's.
            **kwargs: as Detectron2's.

        Raises:
            ConfigError: it cannot be had, or is no checkpoint; the message names it.
        """
        try:
            return super().load(path, *args, **kwargs)
        except _LOAD_ERRORS as error:
            lines = str(error).strip().splitlines() or ["no reason given"]
            # Of our own errors the text is enough.
            name = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
            raise ConfigError(f"The weights {path} can't be used: {name}{lines[0]}") from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        loaded = super()._load_file(filename)
        if is_torchvision_resnet(loaded["model"]):
            self.logger.info(f"{filename} holds a ResNet of torchvision")
            loaded = {
                "model": convert_torchvision_resnet(loaded["model"]),
                "__author__": "torchvision",
                # Detectron2 puts the backbone's prefix before the names.
                "matching_heuristics": True,
            }
        return loaded
