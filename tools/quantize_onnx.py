r"""Quantize the convolutions of an exported model to 8 bits for the CPU, and measure the accuracy.

    python tools/quantize_onnx.py --config-file output/quickstart/config.yaml \
        --model model.onnx --output model-int8.onnx

Scales are calibrated on --calibration-dataset (default: first of DATASETS.TRAIN), or computed in
each run with --dynamic. Both files are evaluated on --check-dataset (default: first of
DATASETS.TEST). If the metric drops by more than --most-drop, nothing is written and the exit code
is 1; it is 2 if nothing could be started.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from solo_d2.config import load_config  # noqa: E402
from solo_d2.data.catalog import (  # noqa: E402
    register_datasets_of_config,
    require_model_classes,
)
from solo_d2.data.classes import make_categories, placeholder_names  # noqa: E402
from solo_d2.engine import Trainer, best_metric  # noqa: E402
from solo_d2.evaluation.run import main_metric  # noqa: E402
from solo_d2.export.onnx_model import OnnxModel, detector_inputs, load_detector  # noqa: E402
from solo_d2.export.quantization import (  # noqa: E402
    CALIBRATION_IMAGES,
    quantize_onnx,
)
from solo_d2.export.runner import Arrays, Detector  # noqa: E402
from solo_d2.utils.files import whole_file  # noqa: E402
from tools.arguments import (  # noqa: E402
    RejectedError,
    add_overrides,
    choose_dataset,
    command_parser,
    entry_point,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="config of the exported model")
    add(
        "--model", type=Path, required=True, metavar="FILE", help="float32 model of export_model.py"
    )
    add("--output", type=Path, required=True, metavar="FILE", help=".onnx")
    add("--dynamic", action="store_true", help="compute the scales of inputs in each run")
    add("--reduce-range", action="store_true", help="7-bit weights, for processors without VNNI")
    add("--calibration-dataset", metavar="NAME")
    add("--calibration-images", type=int, default=CALIBRATION_IMAGES, metavar="N",
        help="number of images (%(default)s)")  # fmt: skip
    add("--check-dataset", metavar="NAME")
    add("--most-drop", type=float, default=1.0, metavar="PERCENT", help="(%(default)s)")
    add_overrides(parser)
    args = parser.parse_args(argv)
    if args.output.suffix != ".onnx":
        parser.error("--output must end in .onnx")
    if args.output.resolve() == args.model.resolve():
        parser.error("--output would replace --model")
    if args.calibration_images < 1:
        parser.error("--calibration-images must be at least 1")
    return args


def calibration_inputs(cfg: Any, detector: Detector, dataset: str, count: int) -> Iterator[Arrays]:
    """Yield inputs of the graph for the first images of a data set."""
    for batch in islice(Trainer.build_test_loader(cfg, dataset), count):
        yield detector.graph_inputs(*detector_inputs(batch))


def _require_classes(cfg: Any, detector: Detector, dataset: str) -> None:
    """Refuse a data set whose classes differ from the exported model's, if known."""
    names, ids = detector.info.class_names, detector.info.class_ids
    known = names != placeholder_names(len(names))
    cfg.MODEL.CLASSES = make_categories(names, ids) if known else []
    require_model_classes(cfg, [dataset])


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    cfg = load_config(args.config_file, args.opts)
    register_datasets_of_config(cfg)
    checked = choose_dataset(args.check_dataset, cfg, "--check-dataset")
    detector = load_detector(args.model)
    _require_classes(cfg, detector, checked)
    calibration = None
    if not args.dynamic:
        source = choose_dataset(args.calibration_dataset, cfg, "--calibration-dataset", "TRAIN")
        calibration = calibration_inputs(cfg, detector, source, args.calibration_images)
    metric = best_metric(cfg)
    with whole_file(args.output) as path:
        quantize_onnx(args.model, path, calibration, reduce_range=args.reduce_range)
        size = path.stat().st_size / 2**20
        quantised = main_metric(cfg, checked, OnnxModel(load_detector(path)), metric)
        full = main_metric(cfg, checked, OnnxModel(detector), metric)
        print(f"{checked}: {metric} {full:.3f} in float32, {quantised:.3f} in 8 bits")
        if not full - quantised <= args.most_drop:
            raise RejectedError(
                f"the metric drops by more than --most-drop {args.most_drop}, {args.output} is not "
                "written"
            )
    print(f"{args.output}: {size:.1f} MiB, {args.model}: {args.model.stat().st_size / 2**20:.1f}")


main = entry_point("quantize_onnx", parse_args, run, log=True)

if __name__ == "__main__":
    sys.exit(main())
