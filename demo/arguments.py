"""The command line of the demo, and loading its model."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from solo_d2 import Predictor
from solo_d2.api.images import MAX_PIXELS
from solo_d2.api.predictor import DEFAULT_SCORE_THRESH
from solo_d2.config import add_import_argument
from solo_d2.export.runtimes import RUNTIMES
from solo_d2.modeling.tiles import Tiles
from solo_d2.utils.commands import positive, probability
from solo_d2.visualization.overlay import LABELS

# Smaller tiles are probably meant as their number.
_SMALLEST_TILE = 16


def read_arguments(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `argv` None takes that of this process."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_import_argument(parser)
    add_model(parser)
    _add_source(parser)
    _add_outputs(parser)
    add_model_options(parser)
    args = parser.parse_args(argv)
    if args.show is None:
        args.show = args.webcam is not None
    _check(parser, args)
    args.drawing = {"draw_boxes": args.boxes}  # options of `Result.draw`
    args.drawing |= {key: getattr(args, key) for key in ("publication", "scale", "labels")}
    return args


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the model, for `load_predictor`."""
    add = parser.add_argument_group("model").add_argument
    add("--config-file", metavar="FILE", help="YAML, such as config.yaml of a training")
    add("--weights", metavar="FILE", help="checkpoint; finds its config in the same folder")
    add("--onnx", metavar="FILE", help="exported model, instead of these")
    add("--runtime", choices=RUNTIMES, help="package that runs --onnx; default: onnxruntime")
    add("--tiles", type=positive, metavar="SIZE", help="search large images in tiles of this side "
        "in pixels, for small objects")  # fmt: skip
    add("--tile-overlap", type=int, metavar="N", help="minimum overlap of tiles in pixels; "
        "default: a quarter of the size")  # fmt: skip
    add("--whole-image", action="store_true", help="with --tiles, search the whole image too, for "
        "objects larger than the overlap")  # fmt: skip
    add("--confidence-threshold", type=probability, default=DEFAULT_SCORE_THRESH, metavar="P",
        help="minimum score; default: %(default)s")  # fmt: skip


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add how the model runs; --opts takes the rest of the command line, so it comes last."""
    add = parser.add_argument
    add("--device", help="cpu or cuda; default: cuda if available")
    add(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides"
    )


def _add_source(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("source (choose one)")
    add = group.add_mutually_exclusive_group(required=True).add_argument
    add("--input", nargs="+", metavar="PATH", help="image files, folders, globs; - reads a list "
        "of them from standard input")  # fmt: skip
    add("--video-input", metavar="FILE", help="video file")
    add("--webcam", nargs="?", const="0", metavar="SOURCE", help="camera by index (default 0), "
        "device, URL such as rtsp://..., or a video file that plays like a camera")  # fmt: skip
    group.add_argument(
        "--max-frames", type=positive, metavar="N", help="maximum number of frames of a video"
    )
    group.add_argument(
        "--max-pixels", type=positive, metavar="N", help="maximum size of an image of --input"
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("outputs").add_argument
    add("--output", metavar="PATH", help="folder for overlays, a PNG or JPG for one image, or a "
        "video file")  # fmt: skip
    add("--json", metavar="FILE", help="write all results in COCO format")
    add("--save-masks", metavar="DIR", help="write a PNG per image with the instance number of "
        "each pixel; 0 is background, 1 the highest score")  # fmt: skip
    add("--panoptic", metavar="DIR", help="write segments of a panoptic model in COCO format")
    add("--show", action=argparse.BooleanOptionalAction, help="show each overlay in a window; "
        "default: for --webcam. Images: any key continues, q stops. Videos: q quit, p or space "
        "pause, + and - threshold, c next class, s save the frame")  # fmt: skip
    add("--boxes", action="store_true", help="draw boxes too")
    add("--labels", choices=LABELS, default="auto", help="write class and score on "
        "instances; auto: where they hide none, and not with one class")  # fmt: skip
    add("--scale", type=float, default=1.0, help="size of overlays relative to the image")
    add("--publication", action="store_true", help="draw with Detectron2's Visualizer, for print; "
        "slow for many instances")  # fmt: skip


def check_model(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with an error unless the options name one model."""
    if bool(args.config_file or args.weights) == bool(args.onnx):
        parser.error("give the model: --config-file, --weights or both, or --onnx")
    if args.onnx and (args.device or args.opts):
        parser.error("--onnx cannot be used with --device and --opts")
    if args.onnx and Path(args.onnx).suffix.lower() != ".onnx":
        parser.error(
            f"--onnx {args.onnx}: its name must end in .onnx; use --weights for a checkpoint"
        )
    if args.tiles and args.tiles < _SMALLEST_TILE:
        parser.error(f"--tiles is the side of a tile, at least {_SMALLEST_TILE} pixels")
    if args.runtime and not args.onnx:
        parser.error("--runtime is for --onnx")


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    check_model(parser, args)
    if args.onnx and args.panoptic:
        parser.error("--onnx cannot be used with --panoptic")
    if not (args.output or args.json or args.save_masks or args.panoptic or args.show):
        parser.error("add an output: --output, --json, --save-masks, --panoptic or --show")
    if args.input and args.max_frames:
        parser.error("--max-frames is for videos")
    if args.max_pixels and not args.input:
        parser.error("--max-pixels is for images")
    args.max_pixels = args.max_pixels or MAX_PIXELS
    if args.tiles is None and (args.tile_overlap is not None or args.whole_image):
        parser.error("--tile-overlap and --whole-image need --tiles")
    if not 0 < args.scale <= 16:
        parser.error("--scale must be above 0 and at most 16")


def load_predictor(args: argparse.Namespace) -> Predictor:
    """Load the model; raises ConfigError or DatasetError as `Predictor` does."""
    tiles = args.tiles and Tiles(args.tiles, args.tile_overlap, args.whole_image)
    options = {"score_thresh": args.confidence_threshold, "on_device": True, "tiles": tiles}
    if args.onnx:
        return Predictor(args.onnx, runtime=args.runtime, **options)
    options |= {"device": args.device, "overrides": args.opts}
    if args.config_file:
        return Predictor(args.config_file, args.weights, **options)
    return Predictor(args.weights, **options)
