"""The page of demo/web in headless Chromium, with a camera that draws a test picture."""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.detectron2, pytest.mark.export]

WEB = Path(__file__).resolve().parents[2] / "demo" / "web"
# Pixels that a page's `detect` can use, as a picture has them.
DETECT = """([data, height, width]) => detect({data, height, width}).then(found => found.map(
    ({score, name, mask}) => [score, name, mask.reduce((sum, inside) => sum + inside, 0)]))"""


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Print nothing."""


@pytest.fixture
def site(tmp_path):
    """Serves a copy of the page; the folder, and the address."""
    if not (WEB / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("onnxruntime-web is not installed: run npm install in demo/web")
    shutil.copy(WEB / "index.html", tmp_path)
    (tmp_path / "node_modules").symlink_to(WEB / "node_modules")
    handler = partial(_Handler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def open_page(browser, address, message):
    """Open the page, and wait for its message."""
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_function(f"/{message}/.test(document.querySelector('output').value)")
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
    return page


def test_runs_on_the_camera_and_agrees_with_the_runner(browser, exported, site):
    from solo_d2.export.runner import Detector

    folder, address = site
    shutil.copy(exported.onnx, folder / "model.onnx")
    page = open_page(browser, address, r"[1-9]\d* instances, \d+ ms: thing")
    assert page.evaluate("[view.height, view.width]") == [96, 128]
    page.evaluate("threshold.value = 1")
    page.wait_for_function("document.querySelector('output').value.startsWith('0 instances')")
    image = np.random.default_rng(0).integers(0, 256, (90, 125, 3), dtype=np.uint8)
    rgba = np.dstack([image, np.full((90, 125), 255, np.uint8)])
    found = page.evaluate(DETECT, [rgba.flatten().tolist(), 90, 125])
    detector = Detector.load(exported.onnx)
    pixels = image[:, :, ::-1] if detector.info.input_format == "BGR" else image
    expected = detector.detect([pixels], [(90, 125)])[0]
    assert len(found) == len(expected["scores"]) > 10
    np.testing.assert_allclose([score for score, _, _ in found], expected["scores"], atol=1e-4)
    names = [detector.info.class_names[k] for k in expected["classes"]]
    areas = expected["masks"].sum(axis=(1, 2))
    same = [one[1:] == [name, area] for one, name, area in zip(found, names, areas, strict=True)]
    assert np.mean(same) > 0.9  # equal scores may change places
    page.close()


def test_what_is_missing_is_named(browser, site):
    folder, address = site
    open_page(browser, address, "model.onnx is not").close()
    (folder / "model.onnx").write_bytes(b"")
    (folder / "node_modules").unlink()
    open_page(browser, address, "npm install").close()
