r"""Find the instances in image files; save overlays and COCO results.

    python demo/demo.py --config-file output/quickstart/config.yaml \
        --weights output/quickstart/model_final.pth --input photos/ "more/*.png" --output overlays
    python demo/demo.py --onnx model.onnx --input photos/ --output overlays

The exit code is 0 if all went well, 1 if some file failed (the others are done), 2 if nothing could
be started.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

if __name__ == "__main__":  # find the checkout first: in this folder `demo` would be this file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectron2.config import CfgNode  # noqa: E402
from detectron2.evaluation.coco_evaluation import instances_to_coco_json  # noqa: E402
from detectron2.structures import Instances  # noqa: E402

from demo import drawing, images, panoptic  # noqa: E402
from demo.predictor import (  # noqa: E402
    Classes,
    OnnxPredictor,
    Predictor,
    find_classes,
    first_line,
)
from solo_d2 import ConfigError, DatasetError  # noqa: E402
from solo_d2.config import load_config  # noqa: E402
from solo_d2.data.catalog import resolve_num_classes  # noqa: E402


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", metavar="FILE", help="YAML; also a training's config.yaml")
    add("--onnx", metavar="FILE", help="exported model, run by ONNX Runtime, instead of a config")
    add("--weights", metavar="FILE", help="checkpoint; short for --opts MODEL.WEIGHTS FILE")
    add("--input", nargs="+", required=True, metavar="PATH", help="image files, folders, globs")
    add("--output", metavar="PATH", help="folder for overlays, or a PNG or JPG file for one image")
    add("--json", metavar="FILE", help="write all results in COCO format")
    add("--panoptic", metavar="DIR", help="write segments of a panoptic model in COCO format")
    add("--show", action="store_true", help="show each overlay; a key goes on, q ends showing")
    add("--confidence-threshold", type=_probability, default=0.3, metavar="P", help="least score")
    add("--boxes", action="store_true", help="draw boxes too")
    add("--scale", type=float, default=1.0, help="size of overlays relative to the image")
    add("--max-pixels", type=int, default=images.MAX_PIXELS, help="larger images are refused")
    add("--device", help="cpu or cuda; default: cuda where there is one")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="of the config")
    args = parser.parse_args(argv)
    if bool(args.config_file) == bool(args.onnx):
        parser.error("name the model: either --config-file or --onnx")
    if args.onnx and (args.weights or args.panoptic or args.device or args.opts):
        parser.error("--onnx: --weights, --panoptic, --device and --opts are for a --config-file")
    if not (args.output or args.json or args.panoptic or args.show):
        parser.error("say what to do with the results: --output, --json, --panoptic or --show")
    if not 0 < args.scale <= 16:
        parser.error("--scale must be above 0 and at most 16")
    return args


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return value


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """Make the config of the demo.

    Raises:
        ConfigError: file, keys, values, weights or device cannot be used.
        DatasetError: the number of classes must be taken from a data set that cannot be read.
    """
    cfg = load_config(args.config_file, args.opts)
    if args.weights:
        cfg.MODEL.WEIGHTS = args.weights
    _check_weights_exist(cfg.MODEL.WEIGHTS)
    cfg.MODEL.DEVICE = _choose_device(args.device)
    if cfg.MODEL.SOLO.NUM_CLASSES == 0 or panoptic.lacks_num_labels(cfg):
        resolve_num_classes(cfg)
    # The model's own last filter, so that masks below the threshold are not made at all.
    keep_thresh = cfg.MODEL.SOLO.KEEP_THRESH_TEST
    cfg.MODEL.SOLO.KEEP_THRESH_TEST = max(keep_thresh, args.confidence_threshold)
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = args.confidence_threshold
    cfg.freeze()
    return cfg


def _check_weights_exist(weights: str) -> None:
    if not weights:
        raise ConfigError("MODEL.WEIGHTS is empty: name a trained checkpoint by --weights FILE")
    if "://" not in weights and not Path(weights).is_file():
        raise ConfigError(f"The weights file {weights} does not exist (--weights or MODEL.WEIGHTS)")


def _choose_device(wanted: str | None) -> str:
    available = torch.cuda.is_available()
    if wanted is None:
        return "cuda" if available else "cpu"
    try:
        kind = torch.device(wanted).type
    except RuntimeError:
        raise ConfigError(f"--device {wanted} is unknown: say cpu or cuda") from None
    if kind == "cuda" and not available:
        raise ConfigError(f"--device {wanted}: no CUDA device can be used here; say --device cpu")
    return wanted


def filter_instances(instances: Instances, threshold: float) -> Instances:
    """Those of at least this score."""
    return instances[instances.scores >= threshold]


def coco_results(
    instances: Instances, image_id: int, file_name: str, classes: Classes
) -> list[dict[str, Any]]:
    """Describe instances as COCO results, each also with the name of its image.

    Args:
        instances: of one image, on the CPU.
        image_id: the image's number.
        file_name: its name.
        classes: gives the category ids.

    Returns:
        Dicts with image_id, file_name, category_id, bbox (XYWH), score and segmentation (RLE).
    """
    results = instances_to_coco_json(instances, image_id)
    for result in results:
        result["category_id"] = classes.json_ids[result["category_id"]]
        result["file_name"] = file_name
    return results


@dataclass
class Demo:
    """Runs the model over files and does with the results what the command line says.

    Attributes:
        args: the command line.
        predictor: finds instances.
        classes: their names and ids.
        stuff: names and ids of stuff; None if the model is not panoptic.
        segments: collects panoptic results; None if they are not written.
        show: whether overlays are still shown.
        results: COCO results so far.
        failures: what failed, a line each.
        num_instances: found so far.
    """

    args: argparse.Namespace
    predictor: Predictor | OnnxPredictor
    classes: Classes
    stuff: Classes | None = None
    segments: panoptic.SegmentWriter | None = None
    show: bool = False
    results: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    num_instances: int = 0

    def run(self, files: Sequence[Path], overlays: Sequence[Path | None]) -> None:
        """Take each file in turn; one that fails is reported and skipped."""
        pairs = zip(files, overlays, strict=True)
        bar = tqdm(pairs, total=len(files), unit="image", disable=None)  # not into log files
        for image_id, (file, overlay) in enumerate(bar):
            try:
                self.process(image_id, file, overlay)
            except images.ImageError as error:
                self.fail(str(error))
            except Exception as error:  # the other files must not suffer
                self.fail(f"{file}: {first_line(error)}")

    def fail(self, line: str) -> None:
        """Report and remember a failure."""
        self.failures.append(line)
        tqdm.write(f"skipped {line}", file=sys.stderr)

    def process(self, image_id: int, file: Path, overlay: Path | None) -> None:
        """Predict, draw, save and show one file."""
        image = images.read_image(file, max_pixels=self.args.max_pixels)
        output = self.predictor.predict(image)
        threshold = self.args.confidence_threshold
        instances = filter_instances(output["instances"].to("cpu"), threshold)
        found = None
        if self.stuff is not None:
            found = panoptic.Segmentation.of(output)
        if overlay is not None or self.show:
            picture = self.draw(image, instances, found)
            if overlay is not None:
                images.save_image(overlay, picture)
            if self.show:
                self.show = drawing.show_image(str(file), picture)
        if self.segments is not None and found is not None:
            self.segments.write(image_id, file, found)
        if self.args.json:
            self.results += coco_results(instances, image_id, str(file), self.classes)
        self.num_instances += len(instances)

    def draw(
        self,
        image: NDArray[np.uint8],
        instances: Instances,
        found: panoptic.Segmentation | None,
    ) -> NDArray[np.uint8]:
        """The overlay of an image: its segments if the model is panoptic, else its instances."""
        options = {"scale": self.args.scale, "draw_boxes": self.args.boxes}
        if found is None or self.stuff is None:
            options["contours"] = self.predictor.contours
            return drawing.draw_instances(image, instances, self.classes.names, **options)
        things, stuff = found.things(), found.stuff()
        names = self.classes.names, self.stuff.names
        return drawing.draw_panoptic(image, things, stuff, *names, **options)


def plan_overlays(output: str | None, files: Sequence[Path]) -> list[Path | None]:
    """Where the overlay of each file goes.

    Args:
        output: --output.
        files: the images, each once.

    Raises:
        ConfigError: --output is a file but there are several images, is of a kind that is not
            written, cannot be written to, or an image would be replaced by its overlay.
    """
    if output is None:
        return [None] * len(files)
    target = Path(output).expanduser()
    if target.is_dir() or target.suffix.lower() not in images.EXTENSIONS:
        overlays = [target / name for name in images.output_names(files)]
    elif len(files) > 1:
        raise ConfigError(f"--output {output} is a file, but there are {len(files)} images")
    elif target.suffix.lower() not in images.OUTPUT_EXTENSIONS:
        raise ConfigError(f"--output {output}: overlays are written as PNG or JPG")
    else:
        overlays = [target]
    inputs = {file.resolve() for file in files}
    for overlay in overlays:
        if overlay.resolve() in inputs:
            raise ConfigError(f"--output {output} would replace the image {overlay}")
    _require_writable(overlays[0])
    return [*overlays]


def _require_writable(path: Path) -> None:
    """Fail before the work is done rather than after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder {path.parent} can't be made: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"The folder {path.parent} can't be written to")


def make_demo(args: argparse.Namespace, files: Sequence[Path]) -> Demo:
    """Load the model that the command line names."""
    if args.onnx:
        predictor = OnnxPredictor(args.onnx, args.confidence_threshold)
        return Demo(args, predictor, predictor.classes)
    cfg = setup_cfg(args)
    classes = find_classes(cfg)
    stuff = panoptic.find_stuff(cfg, classes)
    segments = None
    if args.panoptic:
        segments = panoptic.SegmentWriter.start(args.panoptic, files, classes, stuff)
    return Demo(args, Predictor(cfg), classes, stuff, segments)


def run(args: argparse.Namespace) -> int:
    """Do what the command line says.

    Returns:
        The number of failures.
    """
    files, missing = images.expand_inputs(args.input)
    if not files:
        raise ConfigError(f"No image file matches --input {' '.join(missing)}")
    overlays = plan_overlays(args.output, files)
    for place in (args.json, args.panoptic and Path(args.panoptic) / panoptic.JSON_NAME):
        if place:
            _require_writable(Path(place))
    demo = make_demo(args, files)
    if args.show:
        reason = drawing.why_no_display()
        demo.show = reason is None
        if reason:
            print(f"--show: {reason}; going on without", file=sys.stderr)
    for pattern in missing:
        demo.fail(f"{pattern}: no image file matches")
    demo.run(files, overlays)
    if args.json:
        with images.whole_file(args.json) as path:
            path.write_text(json.dumps(demo.results, allow_nan=False), encoding="utf-8")
    if demo.segments is not None:
        demo.segments.close()
    _print_summary(demo, len(files) + len(missing))
    return len(demo.failures)


def _print_summary(demo: Demo, num_inputs: int) -> None:
    places = [
        str(place) for place in (demo.args.output, demo.args.json, demo.args.panoptic) if place
    ]
    done = num_inputs - len(demo.failures)
    print(f"{done} of {num_inputs} images, {demo.num_instances} instances -> {', '.join(places)}")
    if demo.failures:
        print(f"{len(demo.failures)} failed:", *demo.failures, sep="\n  ", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parse_args(argv)
    images.limit_pixels(args.max_pixels)
    try:
        return 1 if run(args) else 0
    except (ConfigError, DatasetError) as error:
        print(f"demo: {error}", file=sys.stderr)
    except OSError as error:  # writing the json
        print(f"demo: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    return 2


if __name__ == "__main__":
    sys.exit(main())
