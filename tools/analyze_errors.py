#!/usr/bin/env python3
r"""Measure how much mask AP is lost to masks, classes and duplicates (SOLO paper, table 7).

    python tools/analyze_errors.py --config-file output/quickstart/config.yaml \
        --weights output/quickstart/model_final.pth --output output/quickstart/errors
    python tools/analyze_errors.py --config-file output/quickstart/config.yaml \
        --predictions output/quickstart/inference/shapes_val/coco_instances_results.json

The second reads the predictions of an evaluation and needs no model. The exit code is 2 if
something is missing or cannot be used.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from solo_d2.utils.commands import share_cores

    share_cores()  # before torch is imported

from detectron2.config import CfgNode  # noqa: E402

from solo_d2.api.loading import load_model, make_config  # noqa: E402
from solo_d2.config import load_config  # noqa: E402
from solo_d2.data.catalog import (  # noqa: E402
    register_datasets_of_config,
    resolve_num_classes,
)
from solo_d2.evaluation.build import build_evaluator  # noqa: E402
from solo_d2.evaluation.error_analysis import (  # noqa: E402
    analyze_errors,
    format_table,
    load_ground_truth,
    read_predictions,
    to_json,
)
from solo_d2.evaluation.run import evaluate_dataset, evaluation_loader  # noqa: E402
from solo_d2.utils.files import save_text, whole_file  # noqa: E402
from tools.arguments import choose_dataset, entry_point, model_parser  # noqa: E402

RESULTS = "coco_instances_results.json"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = model_parser(__doc__)
    add = parser.add_argument
    add("--predictions", metavar="FILE", help=f"{RESULTS} of an evaluation, instead of --weights")
    add("--dataset", metavar="NAME", help="data set in COCO format; default: DATASETS.TEST[0]")
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"folder for errors.json and, with --weights, {RESULTS}",
    )
    args = parser.parse_args(argv)
    if args.predictions and args.weights:
        parser.error("--predictions and --weights exclude each other")
    return args


def predict(cfg: CfgNode, dataset: str, folder: Path) -> Path:
    """Evaluate the model; return the file of its predictions in COCO format."""
    resolve_num_classes(cfg, [dataset])
    model = load_model(cfg)
    evaluator = build_evaluator(cfg, dataset, str(folder))
    evaluate_dataset(model, evaluation_loader(cfg, dataset), evaluator)
    return folder / RESULTS


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.predictions:
        cfg = load_config(args.config_file, args.opts)
    else:
        cfg = make_config(args.config_file, args.weights, device=args.device, overrides=args.opts)
    register_datasets_of_config(cfg)
    dataset = choose_dataset(args.dataset, cfg, "--dataset NAME")
    ground_truth = load_ground_truth(cfg, dataset)
    with tempfile.TemporaryDirectory() as folder:
        file = args.predictions or predict(cfg, dataset, Path(folder))
        predictions = read_predictions(file, ground_truth)
        if args.output and not args.predictions:
            with whole_file(args.output / RESULTS) as whole:
                whole.write_bytes(Path(file).read_bytes())
    analysis = analyze_errors(ground_truth, predictions)
    print(f"\n{dataset}: {format_table(analysis)}")
    if args.output:
        content = {"dataset": dataset, **to_json(analysis)}
        save_text(args.output / "errors.json", json.dumps(content, indent=2, allow_nan=False))


main = entry_point("analyze_errors", parse_args, run, log=True)

if __name__ == "__main__":
    sys.exit(main())
