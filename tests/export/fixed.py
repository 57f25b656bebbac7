"""Exports whose sizes are those of the example that they are traced with: several times as fast."""

import contextlib

import pytest
import torch

from tests.export.models import images

# Of `trace`'s example: two images in 128x224, and their output.
SIZE, OUTPUT_SIZE = (120, 224), (135, 233)


@contextlib.contextmanager
def fixed_sizes():
    export = torch.export.export
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.export, "export", lambda *a, dynamic_shapes, **options: export(*a, **options)
        )
        yield


def fixed_inputs(seed=0):
    """The batch that such an export takes, as Detectron2's inputs."""
    return [
        {
            "image": torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
            "height": OUTPUT_SIZE[0],
            "width": OUTPUT_SIZE[1],
        }
        for pixels in images(SIZE, SIZE, seed=seed)
    ]
