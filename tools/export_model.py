r"""Export a trained model and check that the export gives the same results.

    python tools/export_model.py --config-file output/quickstart/config.yaml \
        --weights output/quickstart/model_final.pth --format onnx --output model.onnx

The file contains everything from the bytes of an image to masks at the output size, with all
settings as metadata; solo_d2/export/runner.py runs it. Model and export are compared on the images
of --check-images, on all of --check-dataset with mask AP, or on the first images of DATASETS.TEST,
and on a batch of different sizes with an empty image. If they disagree, nothing is written and the
exit code is 1; it is 2 if nothing could be started.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from tqdm import tqdm

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from solo_d2 import ConfigError, DatasetError, ImageError  # noqa: E402
from solo_d2.api.backends import model_input  # noqa: E402
from solo_d2.api.classes import find_classes  # noqa: E402
from solo_d2.api.images import expand_inputs, read_image, require_writable  # noqa: E402
from solo_d2.api.loading import load_model, make_config  # noqa: E402
from solo_d2.data.catalog import (  # noqa: E402
    register_datasets_of_config,
    require_model_classes,
    resolve_num_classes,
)
from solo_d2.engine import Trainer  # noqa: E402
from solo_d2.evaluation.build import build_evaluator  # noqa: E402
from solo_d2.export.agreement import TOLERANCES, Agreement, mixed_batch  # noqa: E402
from solo_d2.export.pipeline import ExportPipeline  # noqa: E402
from solo_d2.export.pixels import input_size  # noqa: E402
from solo_d2.export.programs import EXTENSIONS, FORMATS, describe, trace  # noqa: E402
from solo_d2.export.runner import Detector  # noqa: E402
from solo_d2.modeling.meta_arch import SOLO  # noqa: E402
from solo_d2.utils.files import whole_file  # noqa: E402
from tools.arguments import RejectedError, choose_dataset, entry_point, model_parser  # noqa: E402

# Images of DATASETS.TEST to compare by default.
DEFAULT_IMAGES = 20


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = model_parser(__doc__, device=False)
    add = parser.add_argument
    add("--format", choices=sorted(FORMATS), default="onnx", help="default: onnx; aoti is a package"
        " compiled for the CPU of this machine")  # fmt: skip
    add(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help=".onnx, or .pt2 for the other formats",
    )
    add("--half", action="store_true", help="backbone and head in float16")
    add("--topk", type=int, metavar="N", help="maximum number of candidates per image with masks; "
        "default: MODEL.SOLO.PRE_NMS_TOPK")  # fmt: skip
    add("--soft-masks", action="store_true", help="resize masks in the runner, which saves memory "
        "for large outputs")  # fmt: skip
    checks = parser.add_mutually_exclusive_group()
    checks.add_argument("--check-images", nargs="+", metavar="PATH", help="files, folders, globs")
    checks.add_argument(
        "--check-dataset", metavar="NAME", help="data set to compare on, with mask AP"
    )
    args = parser.parse_args(argv)
    if args.output.suffix != EXTENSIONS[args.format]:
        parser.error(f"--output for --format {args.format} must end in {EXTENSIONS[args.format]}")
    if args.topk is not None and args.topk < 1:
        parser.error("--topk must be at least 1")
    return args


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    cfg = make_config(args.config_file, args.weights, device="cpu", overrides=args.opts)
    model = load_model(cfg)
    batches = choose_inputs(args, cfg)
    pipeline = ExportPipeline(model, topk=args.topk, half=args.half, soft_masks=args.soft_masks)
    classes = find_classes(cfg)
    info = describe(model, pipeline, cfg, classes.names, classes.json_ids)
    save, load = FORMATS[args.format]
    require_writable(args.output)
    if cfg.TEST.TILES.SIZE:
        print("TEST.TILES is not exported: pass --tiles to the demo", file=sys.stderr)
    batches = require_instances(model, batches)
    print(f"Tracing and writing {args.format}, {info.precision} ...", flush=True)
    with whole_file(args.output) as path:
        save(trace(pipeline, info), path)
        size = path.stat().st_size / 2**20
        faults = compare(args, cfg, model, load(path), batches)
        if faults:
            title = f"the export disagrees with the model, {args.output} is not written:"
            raise RejectedError("\n  ".join([title, *faults]))
    print(f"{args.output}: {size:.1f} MiB, {args.format}, {info.precision}")


def choose_inputs(args: argparse.Namespace, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
    """Return the batches to compare on."""
    if args.check_images:
        files, missing = expand_inputs(args.check_images)
        if missing:
            raise ConfigError(f"No image file matches --check-images {' '.join(missing)}")
        for file in files:  # before the export, which takes minutes
            read_image(file)
        return read_files(cfg, files)
    register_datasets_of_config(cfg)
    try:
        name = choose_dataset(args.check_dataset, cfg, "--check-images")
    except DatasetError as error:
        if args.check_dataset:
            raise
        raise DatasetError(f"{error}. Or add --check-images") from error
    if args.check_dataset:
        require_model_classes(cfg, [name])
        resolve_num_classes(cfg, [name])
    loader = Trainer.build_test_loader(cfg, name)
    if args.check_dataset:
        return loader
    return list(itertools.islice(loader, DEFAULT_IMAGES))


@torch.no_grad()
def require_instances(
    model: SOLO, batches: Iterable[list[dict[str, Any]]]
) -> Iterator[list[dict[str, Any]]]:
    """Return the batches, or raise a RejectedError if the model finds no instance in any."""
    rest, seen = iter(batches), []
    for inputs in rest:
        seen.append(inputs)
        if any(len(output["instances"]) for output in model(inputs)):
            return itertools.chain(seen, rest)
    raise RejectedError(
        f"the model finds no instance in the {len(seen)} images to compare on: choose others with "
        "--check-images, or train it longer"
    )


def read_files(cfg: CfgNode, files: Sequence[Path]) -> Iterator[list[dict[str, Any]]]:
    """Yield image files as the model's inputs, resized as the config says."""
    for file in files:
        image = read_image(file)
        sides = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        yield [model_input(image, input_size(image.shape[:2], *sides), cfg.INPUT.FORMAT)]


def compare(
    args: argparse.Namespace,
    cfg: CfgNode,
    model: SOLO,
    detector: Detector,
    batches: Iterable[list[dict[str, Any]]],
) -> list[str]:
    """Run model and export, print their agreement and return the discrepancies."""
    agreement = Agreement(TOLERANCES[detector.info.precision])
    batches = iter(batches)
    first = list(itertools.islice(batches, 2))
    some = [sample for inputs in first for sample in inputs]
    agreement.compare(model, detector, mixed_batch(some, model.pixel_mean.flatten()))
    with tempfile.TemporaryDirectory() as folder:
        evaluators = []
        if args.check_dataset:
            evaluators = [build_evaluator(cfg, args.check_dataset, folder) for _ in range(2)]
        for evaluator in evaluators:
            evaluator.reset()
        for inputs in tqdm(itertools.chain(first, batches), unit="batch", disable=None):
            results = agreement.compare(model, detector, inputs)
            for evaluator, outputs in zip(evaluators, results, strict=False):
                evaluator.process(inputs, outputs)
        aps = [evaluator.evaluate()["segm"]["AP"] for evaluator in evaluators]
    print(agreement)
    faults = agreement.faults()
    if faults and agreement.most_candidates > detector.info.topk:
        faults.append(
            f"an image has {agreement.most_candidates} candidates, but the export makes masks of "
            f"{detector.info.topk}: use --topk {agreement.most_candidates}"
        )
    if aps:
        ap, exported_ap = aps
        print(f"{args.check_dataset}: mask AP {ap:.3f} of the model, {exported_ap:.3f} exported")
        if not abs(ap - exported_ap) <= agreement.tolerance.ap:
            faults.append(f"mask AP is {exported_ap:.3f} instead of {ap:.3f}")
    return faults


main = entry_point("export_model", parse_args, run, errors=(ImageError,), log=True)

if __name__ == "__main__":
    sys.exit(main())
