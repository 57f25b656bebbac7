"""Command line arguments that name tiny models which find something in every image."""

import pytest


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    from tests.api.models import arguments, save_model

    return arguments(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="session")
def panoptic_model(tmp_path_factory):
    from tests.api.models import arguments, save_model

    return arguments(save_model(tmp_path_factory.mktemp("panoptic"), panoptic=True))
