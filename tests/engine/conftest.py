"""Data that the trainer's tests share."""

import pytest


@pytest.fixture(scope="package")
def shapes(tmp_path_factory):
    """A folder of generated images in COCO format."""
    from solo_d2.data import ShapesParams, ensure_shapes

    root = tmp_path_factory.mktemp("data") / "shapes"
    return ensure_shapes(root, ShapesParams(num_train=24, num_val=6))
