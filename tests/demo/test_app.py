"""The demo's page in headless Chromium, with a tiny random model that finds something."""

import json
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from demo import app
from solo_d2.api.classes import Classes
from tests.api.models import picture, save
from tests.pictures import png_of_size, write_video

pytestmark = pytest.mark.detectron2

PATIENCE = 60_000  # milliseconds


@pytest.fixture(scope="module")
def page_url(model, tmp_path_factory):
    """The address of a served page, which writes into a folder of its own."""
    folder = tmp_path_factory.mktemp("app")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        pytest.importorskip("gradio")
        patch.chdir(tmp_path_factory.mktemp("nothing is written here"))
        args = app.parse_args([*model, "--confidence-threshold", "0", "--max-upload", "1",
                               "--max-pixels", "4000000"])  # fmt: skip
        served = app.serve(args, folder)
        yield served.local_url
        served.close(verbose=False)
        assert list(Path.cwd().iterdir()) == []


@pytest.fixture
def visit(browser, page_url):
    """Open the page as a new visitor; nothing is requested from other machines."""
    visits, strangers = [], []

    def open_page():
        visits.append(browser.new_context(accept_downloads=True))
        page = visits[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda r: strangers.append(r.url) if is_strange(r.url) else None)
        page.goto(page_url)
        page.wait_for_selector("#message")
        return page

    def is_strange(url):
        return not url.startswith((page_url, "data:", "blob:"))

    yield open_page
    for visit in visits:
        visit.close()
    assert strangers == []


def upload(page, file, element="image"):
    page.set_input_files(f"#{element} input[type=file]", file)


def wait_for_message(page, text, element="message"):
    page.wait_for_function(
        "([id, text]) => document.getElementById(id).innerText.includes(text)",
        arg=[element, text],
    )


def download(page, element):
    with page.expect_download() as found:
        page.click(f"#{element}")
    return Path(found.value.path()).read_bytes()


def test_upload_filter_and_download(visit, tmp_path):
    page = visit()
    upload(page, save(tmp_path / "a.png"))
    wait_for_message(page, "5 of 5 instances; 64 x 48 pixels")
    results = json.loads(download(page, "json"))
    assert {entry["file_name"] for entry in results} == {"a.png"}
    scores = sorted(entry["score"] for entry in results)
    assert len(scores) == 5
    middle = round((scores[1] + scores[-1]) / 2, 2)
    kept = [score for score in scores if score >= middle]
    assert 0 < len(kept) < 5
    page.fill("#score input[type=number]", str(middle))
    page.press("#score input[type=number]", "Enter")
    wait_for_message(page, f"{len(kept)} of 5 instances")
    assert len(json.loads(download(page, "json"))) == len(kept)
    (tmp_path / "masks.png").write_bytes(download(page, "masks"))
    labels = np.asarray(Image.open(tmp_path / "masks.png"))
    assert labels.shape == (48, 64)
    assert labels.max() <= len(kept)
    (tmp_path / "overlay.png").write_bytes(download(page, "overlay"))
    drawn = np.asarray(Image.open(tmp_path / "overlay.png"))
    assert np.abs(drawn.astype(int) - picture()).mean() > 1


def test_unreadable_and_large_files_give_a_message(visit, tmp_path):
    page = visit()
    (tmp_path / "text.jpg").write_text("no image at all")
    (tmp_path / "large.png").write_bytes(png_of_size(3000, 2000))
    upload(page, tmp_path / "text.jpg")
    wait_for_message(page, "text.jpg: not an image")
    assert "/" not in page.inner_text("#message")
    page.locator("#image").get_by_label("Clear").click()
    upload(page, tmp_path / "large.png")
    wait_for_message(page, "3000 x 2000 pixels, more than the limit of 4000000")


def test_two_visitors_at_once(visit, tmp_path):
    pages = [visit(), visit()]
    for page, size in zip(pages, ((48, 64), (40, 60)), strict=True):
        upload(page, save(tmp_path / f"{size[0]}.png", picture(*size)))
    for page, size in zip(pages, ("64 x 48", "60 x 40"), strict=True):
        wait_for_message(page, size)
    names = [{e["file_name"] for e in json.loads(download(page, "json"))} for page in pages]
    assert names == [{"48.png"}, {"40.png"}]


def test_an_address_that_cannot_be_served_is_refused_first(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for port in (taken.getsockname()[1], 99_999):
            assert app.main(["--onnx", "missing.onnx", "--port", str(port)]) == 2
            assert f"--port {port} cannot be used" in capsys.readouterr().err


def test_exported_models_have_no_tab_of_the_network(tmp_path):
    pytest.importorskip("gradio")
    from demo.page import Page

    args = app.parse_args(["--onnx", "model.onnx"])
    predictor = SimpleNamespace(classes=Classes(["disc"], [1]))
    components = Page(predictor, args, tmp_path).build().config["components"]
    tabs = [x["props"]["label"] for x in components if x["type"] == "tabitem"]
    assert tabs == ["Image", "Video", "Camera"]


def test_clicked_cell_video_and_camera(visit, tmp_path):
    page = visit()
    upload(page, save(tmp_path / "a.png"))
    wait_for_message(page, "5 of 5")
    page.get_by_role("tab", name="What the network sees").click()
    page.click("#grid img", position={"x": 5, "y": 5})
    page.wait_for_function("document.getElementById('cell').innerText.includes('%')")
    write_video(tmp_path / "clip.mp4")
    page.get_by_role("tab", name="Video").click()
    upload(page, tmp_path / "clip.mp4", "video")
    time.sleep(0.5)
    page.click("#run")
    wait_for_message(page, "frames; at most 300", "video-message")
    page.wait_for_selector("#overlay-video video")
    page.get_by_role("tab", name="Camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.get_by_text("Record").click()
    page.wait_for_selector("#view img")
