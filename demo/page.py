"""The page of demo/app.py. Its handlers share nothing that a visitor can change."""

import hashlib
import json
import shutil
from argparse import Namespace
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from demo.records import save_masks
from demo.video_files import VideoError, writing_video
from solo_d2 import ImageError, Predictor
from solo_d2.api.images import save_image
from solo_d2.api.network_view import NetworkView
from solo_d2.api.results import Result
from solo_d2.api.video import Video
from solo_d2.data.unique_names import unique_names
from solo_d2.inference import NMS
from solo_d2.utils.images import read_image
from solo_d2.visualization.overlay import LABELS
from solo_d2.visualization.tracker import MaskTracker

OWN, KERNELS = "as configured", ("gaussian", "linear")
HEADERS = ["instance", "class", "score", "area (pixels)", "box (left, top, right, bottom)"]
# Longer sides in pixels of the picture of the grid and of the panels of a cell.
GRID_SIZE, PANEL_SIZE = 560, 180
# Images whose results are kept, and seconds that gradio keeps files.
NUM_KEPT, MAX_AGE = 2, 3600
PROGRESS = gr.Progress()  # gradio looks for it among the defaults of a handler
NOTHING: tuple[Any, ...] = (None, [], None, None, None)
# Of pictures; gradio's third one would share them on a website.
BUTTONS = ["fullscreen", "download"]


class Page:
    """Handlers and layout for one model; `settings` are the values of `_settings`."""

    def __init__(self, predictor: Predictor, args: Namespace, folder: Path):
        """Prepare the page of a command line; files are written into `folder` alone."""
        self.args, self.folder, self.predictor = args, folder, predictor
        predictor.score_thresh = None  # the page filters
        self.has_network = hasattr(predictor, "model")  # exported models do not
        self.names = unique_names(predictor.classes.names, predictor.classes.json_ids)
        read = partial(read_image, max_pixels=args.max_pixels)
        self.find = lru_cache(NUM_KEPT)(
            lambda file, *nms: self.choose(*nms).find(read(file), Path(file).name)
        )
        self.view = lru_cache(NUM_KEPT)(lambda file: NetworkView(predictor, read(file)))

    def choose(self, nms: str, kernel: str) -> Predictor:
        """Return the predictor with an NMS."""
        return self.predictor if nms == OWN else self.predictor.with_nms(nms, kernel=kernel)

    def own(self, request: gr.Request) -> Path:
        """Return the folder of a visitor."""
        path = self.folder / hashlib.sha256(str(request.session_hash).encode()).hexdigest()
        path.mkdir(exist_ok=True)
        return path

    def leave(self, request: gr.Request) -> None:
        """Remove the files of a visitor."""
        shutil.rmtree(self.own(request))

    def shown(self, result: Result, settings: tuple[Any, ...]) -> tuple[Result, NDArray[np.uint8]]:
        """Filter a result, and draw it."""
        _, _, threshold, classes, boxes, labels = settings
        result = result.filtered(threshold, classes or None)
        return result, result.draw(draw_boxes=boxes, labels=labels)

    def frame(self, frame: NDArray[np.uint8], settings: tuple[Any, ...], name: str = "") -> Result:
        """Find the instances in a frame of a video or a camera."""
        height, width = frame.shape[:2]
        if height * width > self.args.max_pixels:
            limit = f"more than the limit of {self.args.max_pixels}"
            raise ImageError(f"{name}: {width} x {height} pixels, {limit}")
        return self.choose(*settings[:2]).find(frame, name)

    def on_image(self, request: gr.Request, file: str | None, *settings: Any) -> tuple[Any, ...]:
        """Return message, overlay, table, and the files of overlay, masks and COCO results."""
        if file is None:
            return "Upload an image.", *NOTHING
        try:
            found = self.find(file, *settings[:2])
        except ImageError as error:
            return message(error, file), *NOTHING
        result, picture = self.shown(found, settings)
        files = [self.own(request) / name for name in ("overlay.png", "masks.png", "coco.json")]
        save_image(files[0], picture)
        save_masks(files[1], result)
        files[2].write_text(json.dumps(result.to_coco()))
        height, width = result.image_size
        text = f"{len(result)} of {len(found)} instances; {width} x {height} pixels"
        return text, str(files[0]), self.table(result), *map(str, files)

    def table(self, result: Result) -> list[list[Any]]:
        """Return a row for each instance."""
        return [
            [number, self.names[x["class_index"]], round(x["score"], 3), int(x["mask"].sum()),
             ", ".join(f"{edge:.0f}" for edge in x["box"])]
            for number, x in enumerate(result.to_dicts(), 1)
        ]  # fmt: skip

    def on_video(
        self,
        request: gr.Request,
        progress: gr.Progress = PROGRESS,
        file: str | None = None,
        *settings: Any,
    ) -> tuple[Any, ...]:
        """Return message, video and file of COCO results; instances keep their colours."""
        if file is None:
            return "Upload a video.", None, None
        folder, tracker, limit = self.own(request), MaskTracker(), self.args.max_frames
        target, results = folder / "overlay.webm", folder / "video.json"
        entries: list[dict[str, Any]] = []
        try:
            with Video(file) as video, writing_video(target, video.rate) as writer:
                for number, frame in zip(range(limit), video, strict=False):
                    found = self.frame(frame, settings, f"{Path(file).name}#{number}")
                    masks, classes = found.instances.pred_masks, found.instances.pred_classes
                    found = found.tracked(tracker.update(masks, classes))
                    result, picture = self.shown(found, settings)
                    writer.write(picture)
                    entries += result.to_coco(number)
                    progress((number + 1, min(limit, video.num_frames or limit)), unit="frames")
        except (ImageError, VideoError) as error:
            return message(error, file), None, None
        results.write_text(json.dumps(entries))
        text = f"{writer.num_frames} frames; at most {limit} are processed"
        return text, str(target), str(results)

    def on_camera(self, frame: NDArray[np.uint8] | None, *settings: Any) -> Any:
        """Return the overlay of a frame of the visitor's camera."""
        if frame is None:
            return None
        try:
            return self.shown(self.frame(frame, settings, "camera"), settings)[1]
        except ImageError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def on_level(self, file: str | None, level: int, threshold: float) -> tuple[Any, ...]:
        """Return the grid of a level, its class scores and the masks of all cells."""
        if file is not None:
            with suppress(ImageError):  # the first tab says why
                return self.view(file).draw_level(level, score_thresh=threshold, size=GRID_SIZE)
        return None, None, None

    def on_cell(self, file: str | None, level: int, event: gr.SelectData) -> tuple[Any, ...]:
        """Return the class scores of a clicked cell, and its kernel, channels and mask."""
        if file is None:
            return None, None
        view = self.view(file)
        scale = max(view.image.shape[:2]) / GRID_SIZE
        cell = view.cell_at(level, *(scale * value for value in event.index))
        scores = dict(zip(self.names, view.class_scores(level, cell), strict=True))
        return scores, view.draw_cell(level, cell, size=PANEL_SIZE)

    def _settings(self) -> list[Any]:
        """Lay out the settings, which all tabs share."""
        with gr.Row(visible=self.has_network):
            nms = gr.Dropdown([OWN, *NMS], value=OWN, label="NMS")
            kernel = gr.Radio(KERNELS, value=KERNELS[0], label="Kernel of matrix and soft NMS")
        with gr.Row():
            threshold = gr.Slider(0, 1, self.args.confidence_threshold, step=0.01,
                                  label="Score threshold", elem_id="score")  # fmt: skip
            choices = [(name, index) for index, name in enumerate(self.names)]
            classes = gr.Dropdown(choices, multiselect=True, label="Classes (none: all)")
            labels = gr.Radio(LABELS, value="auto", label="Labels")
            boxes = gr.Checkbox(label="Draw boxes")
        return [nms, kernel, threshold, classes, boxes, labels]

    def _image_tab(self, settings: list[Any]) -> Any:
        with gr.Row():
            with gr.Column():
                file = gr.File(label="Image", elem_id="image")
                text = gr.Markdown("Upload an image.", elem_id="message")
                with gr.Row():
                    buttons = [gr.DownloadButton(name, elem_id=name.split()[-1], min_width=100)
                               for name in ("overlay", "masks", "COCO json")]  # fmt: skip
            overlay = gr.Image(label="Instances", elem_id="overlay-image", buttons=BUTTONS)
        table = gr.Dataframe(headers=HEADERS, label="Instances", elem_id="table")
        outputs = [text, overlay, table, *buttons]
        changes = [file.change, *(setting.change for setting in settings)]
        gr.on(changes, self.on_image, [file, *settings], outputs, trigger_mode="always_last")
        return file

    def _video_tab(self, settings: list[Any]) -> None:
        with gr.Row():
            with gr.Column():
                file = gr.File(label="Video", elem_id="video")
                run = gr.Button("Run", elem_id="run")
                text = gr.Markdown("Upload a video.", elem_id="video-message")
                results = gr.DownloadButton("Download COCO json")
            video = gr.Video(label="Instances", elem_id="overlay-video", buttons=["download"])
        run.click(self.on_video, [file, *settings], [text, video, results])

    def _camera_tab(self, settings: list[Any]) -> None:
        with gr.Row():
            camera = gr.Image(sources=["webcam"], streaming=True, label="Camera")
            view = gr.Image(streaming=True, label="Instances", elem_id="view", buttons=BUTTONS)
        camera.stream(self.on_camera, [camera, *settings], view, stream_every=0.2,
                      show_progress="hidden")  # fmt: skip

    def _network_tab(self, file: Any, threshold: Any, tab: Any) -> None:
        head = self.predictor.model.head
        choices = [(f"{name}: {side} x {side} cells", index) for index, (name, side)
                   in enumerate(zip(head.in_features, head.num_grids, strict=True))]  # fmt: skip
        gr.Markdown("The image of the first tab. Click a cell of the grid.")
        level = gr.Dropdown(choices, value=0, label="Level", elem_id="level")
        with gr.Row():
            grid = gr.Image(label="Grid", elem_id="grid", interactive=False, buttons=BUTTONS)
            scores = gr.Image(label="Best class score of each cell", buttons=BUTTONS)
            sheet = gr.Image(label="Mask of each cell", buttons=BUTTONS)
        with gr.Row():
            classes = gr.Label(label="Class scores of the cell", num_top_classes=5, elem_id="cell")
            panels = gr.Image(label="Kernel, strongest channels and mask", scale=3, buttons=BUTTONS)
        gr.on([tab.select, level.change], self.on_level, [file, level, threshold],
              [grid, scores, sheet])  # fmt: skip
        grid.select(self.on_cell, [file, level], [classes, panels])

    def build(self) -> Any:
        """Lay out the page."""
        with gr.Blocks(
            title="SOLO", analytics_enabled=False, delete_cache=(MAX_AGE, MAX_AGE)
        ) as page:
            gr.Markdown("# Instance segmentation with SOLO")
            settings = self._settings()
            with gr.Tab("Image"):
                file = self._image_tab(settings)
            with gr.Tab("Video"):
                self._video_tab(settings)
            with gr.Tab("Camera"):
                self._camera_tab(settings)
            if self.has_network:
                with gr.Tab("What the network sees") as tab:
                    self._network_tab(file, settings[2], tab)
            page.unload(self.leave)
        return page


def message(error: Exception, file: str) -> str:
    """Return what was wrong with a visitor's file, without its folder here."""
    return f"**{str(error).replace(file, Path(file).name)}**"
