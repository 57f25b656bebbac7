"""Command lines of tiny models that find something in every image, and a browser."""

import shutil

import pytest

OPTIONS = "--no-sandbox --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    from tests.api.models import arguments, save_model

    return arguments(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="session")
def panoptic_model(tmp_path_factory):
    from tests.api.models import arguments, save_model

    return arguments(save_model(tmp_path_factory.mktemp("panoptic"), panoptic=True))


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, with a camera that draws a test picture."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=OPTIONS.split())
        yield browser
        browser.close()
