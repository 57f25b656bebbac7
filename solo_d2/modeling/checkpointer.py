"""Detectron2's checkpointer, which also reads the weights of other projects."""

from typing import Any

from detectron2.checkpoint import DetectionCheckpointer

from solo_d2.checkpoints.torchvision import convert_torchvision_resnet, is_torchvision_resnet


class SOLOCheckpointer(DetectionCheckpointer):
    """Recognises by its keys what a file holds, and renames it to this project's names.

    Files are read with `torch.load(weights_only=True)`, which runs no code of theirs; a `.pkl` of
    Detectron2's model zoo is a pickle and must come from a source you trust.
    """

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
