"""An exported model that is called as the model itself."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures import Instances
from numpy.typing import NDArray

from solo_d2.export.agreement import to_instances
from solo_d2.export.runner import Detector


class OnnxModel:
    """Takes and gives what a SOLO model does in inference, on the CPU."""

    def __init__(self, detector: Detector):
        """Wrap an exported model.

        Args:
            detector: the model.
        """
        self.detector = detector

    def __call__(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Instances]]:
        """Infer.

        Args:
            batched_inputs: Detectron2's, with "image" (3, H, W) of whole numbers in [0, 255].
        """
        images, sizes = detector_inputs(batched_inputs)
        found = self.detector.detect(images, sizes)
        return [
            {"instances": to_instances(arrays, size)}
            for arrays, size in zip(found, sizes, strict=True)
        ]


def detector_inputs(
    batched_inputs: Sequence[Mapping[str, Any]],
) -> tuple[list[NDArray[np.uint8]], list[tuple[int, int]]]:
    """Images (H, W, 3) and the sizes of their outputs, of Detectron2's inputs."""
    images = [x["image"].permute(1, 2, 0).byte().numpy() for x in batched_inputs]
    sizes = [
        (x.get("height", image.shape[0]), x.get("width", image.shape[1]))
        for x, image in zip(batched_inputs, images, strict=True)
    ]
    return images, sizes
