#!/usr/bin/env python3
r"""Draw the mask that each cell of a level predicts, and the result (SOLO paper, figure 4).

    python tools/draw_activations.py --config-file output/quickstart/config.yaml \
        --weights output/quickstart/model_final.pth --input photo.jpg --output cells.png
    python tools/draw_activations.py --config-file output/quickstart/config.yaml \
        --weights output/quickstart/model_final.pth --dataset shapes_val --count 8 --output cells

Unreadable images are skipped. The exit code is then 1; it is 2 if nothing could be started.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from solo_d2.utils.commands import share_cores

    share_cores()  # before torch is imported

import numpy as np  # noqa: E402
from detectron2.config import CfgNode  # noqa: E402
from detectron2.data import DatasetCatalog  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from solo_d2 import ConfigError, ImageError, Predictor  # noqa: E402
from solo_d2.api.activations import (  # noqa: E402
    choose_level,
    class_colors,
    compose,
    find_level,
    level_activations,
    panel_size,
    record,
)
from solo_d2.api.images import expand_inputs, plan_overlays, read_image, save_image  # noqa: E402
from solo_d2.api.loading import make_config  # noqa: E402
from solo_d2.data.catalog import register_datasets_of_config  # noqa: E402
from solo_d2.data.unique_names import unique_names  # noqa: E402
from solo_d2.utils.commands import positive, probability  # noqa: E402
from tools.arguments import choose_dataset, entry_point, model_parser  # noqa: E402


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = model_parser(__doc__)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help="image files, folders, globs")
    source.add_argument("--dataset", metavar="NAME", help="use images of a registered data set")
    add("--count", type=positive, metavar="N", help="number of images of --dataset; default: 1")
    add("--output", required=True, metavar="PATH", help="folder, or a PNG or JPG for one image")
    add("--level", help="index or feature of the level; default: that of the most instances")
    add("--confidence-threshold", type=probability, default=0.3, metavar="P",
        help="minimum score of instances in the result")  # fmt: skip
    args = parser.parse_args(argv)
    if args.input and args.count:
        parser.error("--count is for --dataset")
    return args


def find_files(args: argparse.Namespace, cfg: CfgNode) -> list[Path]:
    """Return the image files that the command line names."""
    if args.input:
        files, missing = expand_inputs(args.input)
        if missing:
            raise ConfigError(f"No image file matches --input {' '.join(missing)}")
        return files
    register_datasets_of_config(cfg)
    samples = DatasetCatalog.get(choose_dataset(args.dataset, cfg, "--dataset"))
    count = min(args.count or 1, len(samples))  # spread evenly
    return [Path(samples[i * len(samples) // count]["file_name"]) for i in range(count)]


def draw(
    args: argparse.Namespace, predictor: Predictor, image: NDArray[np.uint8], score_thresh: float
) -> NDArray[np.uint8]:
    """Draw the picture of one image."""
    model = predictor.model
    with record(model) as recording:
        result = predictor.find(image)
    classes = predictor.classes
    instances, names = result.instances, unique_names(classes.names, classes.json_ids)
    if args.level is not None:
        level = find_level(model.head, args.level)
    else:
        boxes = instances.pred_boxes.clone()
        height, width = recording.image_sizes[0]
        boxes.scale(width / image.shape[1], height / image.shape[0])
        level = choose_level(recording.outputs, boxes.tensor, model.scale_ranges)
    activations = level_activations(model.head, recording, level)
    colors = class_colors(len(names))
    picture = result.draw(
        publication=True,
        scale=panel_size(activations)[1] / image.shape[1],
        colors=[tuple(color) for color in (colors / 255)[instances.pred_classes.numpy()]],
    )
    return compose(image, picture, activations, names, colors, score_thresh=score_thresh)


def run(args: argparse.Namespace) -> int:
    """Run the command; return 1 if an image cannot be read, otherwise 0."""
    cfg = make_config(args.config_file, args.weights, device=args.device, overrides=args.opts)
    files = find_files(args, cfg)
    outputs = plan_overlays(args.output, files)
    predictor = Predictor(cfg, device=args.device, score_thresh=args.confidence_threshold)
    predictor.tiles = None  # the cells are those of the whole image
    if args.level is not None:
        find_level(predictor.model.head, args.level)  # before an image is read
    thresh = cfg.MODEL.SOLO.SCORE_THRESH_TEST
    failed = 0
    for file, output in zip(files, outputs, strict=True):
        try:
            image = read_image(file)
        except ImageError as error:
            print(f"draw_activations: skipped {error}", file=sys.stderr)
            failed = 1
            continue
        save_image(str(output), draw(args, predictor, image, thresh))
        print(f"{file} -> {output}")
    return failed


main = entry_point("draw_activations", parse_args, run)

if __name__ == "__main__":
    sys.exit(main())
