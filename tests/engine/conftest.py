"""Data that the trainer's tests share."""

import pytest


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A folder of generated images in COCO format.

    Of the session: its data set is registered under one name, which a second folder could not get,
    and a worker of pytest-xdist may come back to this package.
    """
    from solo_d2.data import ShapesParams, ensure_shapes

    root = tmp_path_factory.mktemp("data") / "shapes"
    return ensure_shapes(root, ShapesParams(num_train=24, num_val=6))
