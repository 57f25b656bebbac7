"""One page about inference with a model: every stage, size, memory, speed and accuracy.

Detectron2's Mask R-CNN R50-FPN is measured alternately in the same run: the same files, at the same
size, to masks at the size of the image that are encoded and drawn. The page says what was
measured on which machine.

Without --images and --dataset the images are smooth noise. Without --weights, and for Mask R-CNN
without --reference-weights, a model is random: what it finds, and so what its stages after the
head cost, says nothing. Compare only backbone and head in that case.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.collect_env import collect_env_info

import solo_d2
from solo_d2.api.classes import find_classes
from solo_d2.api.images import (
    ImageError,
    expand_inputs,
    read_image,
    require_writable,
    save_image,
)
from solo_d2.engine import Trainer, best_metric
from solo_d2.utils.errors import ConfigError
from solo_d2.utils.files import save_json, save_text
from tools.benchmarks import mask_rcnn_reference, stages
from tools.benchmarks.common import (
    Timing,
    add_common_arguments,
    describe_machine,
    measure,
    peak_memory,
    timing_of,
)
from tools.benchmarks.inference import add_model_arguments, load, metric_of, resized
from tools.benchmarks.report_text import format_report

OURS, REFERENCE = "this model", "Mask R-CNN"
# As many files take turns, or as the largest batch has.
NUM_IMAGES = 8
# Height and width of noise, those of most of COCO's photos, and how many pixels a blob is wide.
NOISE_SIZE, BLOB = (480, 640), 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py report`."""
    add = parser.add_argument
    add_model_arguments(parser, batch_sizes=[1, 8], images="the images unless --images")
    add("--images", nargs="+", metavar="FILE", help="files, folders or globs; default: noise")
    add("--reference-config", metavar="FILE", help="of a Mask R-CNN; default: Detectron2's R50-FPN")
    add("--reference-weights", metavar="FILE", help="of the Mask R-CNN; default: random ones")
    add_common_arguments(parser, output="Markdown file (.md) for the report; a .json goes beside")


def run(args: argparse.Namespace) -> None:
    """Measure, print the report, write it.

    Raises:
        ConfigError: an option, config, weights or image cannot be used.
        DatasetError: the data set is unknown or incomplete.
    """
    for option in ("batch_sizes", "size", "repeats"):
        value = getattr(args, option)
        if value is not None and min(value if isinstance(value, list | tuple) else [value]) < 1:
            raise ConfigError(f"--{option.replace('_', '-')} must be at least 1")
    if args.output:  # before minutes of work
        if args.output.suffix != ".md":
            raise ConfigError(f"--output {args.output} must end in .md; a .json is put beside it")
        require_writable(args.output)
    args.batch_sizes = list(dict.fromkeys(args.batch_sizes))
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure_report(args, Path(folder))
    text = format_report(found)
    print(text)
    if args.output:
        save_json(args.output.with_suffix(".json"), found)
        save_text(args.output, text)


def measure_report(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that the report says, ready for JSON; the folder is for noise."""
    pipelines = make_pipelines(args)
    files, source = find_images(args, pipelines[OURS].cfg, folder)
    timings = {batch: _time_batch(args, pipelines, files, batch) for batch in args.batch_sizes}
    metric, values = evaluate(args, pipelines)
    keys = ("config_file", "weights", "reference_config", "reference_weights", "opts", "dataset")
    return {
        **{key.removesuffix("_file"): getattr(args, key) for key in keys},
        "images": {"source": source, "files": len(files)},
        "machine": describe_machine(args.device) | {"solo_d2": solo_d2.__version__},
        "environment": collect_env_info(),
        "metric": metric,
        "stages_of_batch": args.batch_sizes[0],
        "models": {
            name: {
                **stages.model_size(pipeline, files[0], reference=name == REFERENCE),
                "instances": sum(len(pipeline.run([file])[0]) for file in files) / len(files),
                "metric": values.get(name),
                "batches": {batch: timings[batch][name] for batch in timings},
            }
            for name, pipeline in pipelines.items()
        },
    }


def make_pipelines(args: argparse.Namespace) -> dict[str, stages.Pipeline]:
    """Both models, ready to run.

    Raises:
        ConfigError: one cannot be made, or they cannot be compared.
    """
    cfg, model = load(args)
    reference_cfg, reference = mask_rcnn_reference.load(args, cfg)
    sides = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    names = find_classes(cfg).names
    num = reference_cfg.MODEL.ROI_HEADS.NUM_CLASSES
    reference_names = names if num == len(names) else [f"class {index}" for index in range(num)]
    return {
        OURS: stages.Pipeline(cfg, model, names, *sides, args.size, stages.stage_functions(model)),
        REFERENCE: stages.Pipeline(
            *(reference_cfg, reference, reference_names, *sides, args.size),
            mask_rcnn_reference.stage_functions(reference),
        ),
    }


def find_images(args: argparse.Namespace, cfg: Any, folder: Path) -> tuple[list[Path], str]:
    """Files that can be read, at least one, and what they are.

    Raises:
        ConfigError: one cannot be used, or there is none.
    """
    number = max(NUM_IMAGES, *args.batch_sizes)
    if args.images:
        files, missing = expand_inputs(args.images)
        if missing:
            raise ConfigError(f"--images {' '.join(missing)}: there is no image")
        files, source = files[:number], "files of --images"
    elif args.dataset:
        loader = chain.from_iterable(Trainer.build_test_loader(cfg, args.dataset))
        files = [Path(entry["file_name"]) for entry in islice(loader, number)]
        source = f"the first of {args.dataset}"
    else:
        files, source = _make_noise(args, folder, number), "smooth noise"
    try:
        height, width = [read_image(file).shape[:2] for file in files][0]
    except ImageError as error:
        raise ConfigError(str(error)) from error
    return files, f"{source}, {height}x{width} and the like"


def _make_noise(args: argparse.Namespace, folder: Path, number: int) -> list[Path]:
    """Blobs of random colours, which take about as long to decode as a photo."""
    generator = torch.Generator().manual_seed(args.seed)
    shape = (3, NOISE_SIZE[0] // BLOB, NOISE_SIZE[1] // BLOB)
    files = [folder / f"{index}.jpg" for index in range(number)]
    for file in files:
        blobs = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        save_image(file, resized(blobs, NOISE_SIZE).permute(1, 2, 0).contiguous().numpy())
    return files


def _time_batch(
    args: argparse.Namespace,
    pipelines: Mapping[str, stages.Pipeline],
    files: Sequence[Path],
    batch: int,
) -> dict[str, dict[str, Any]]:
    """Time and memory of a batch size, of both models alternately, on the same batches.

    Returns:
        For each model the milliseconds per image, as timings: "whole", "model" (from its input to
        masks) and, of the first batch size, "stages"; and "peak_bytes" of a whole batch.
    """
    print(f"batches of {batch} ...", flush=True)
    # Where the last batch would be short, some files come twice.
    repeated = cycle(files)
    batches = [list(islice(repeated, batch)) for _ in range(-(-len(files) // batch))]
    functions: dict[str, Callable[[], Any]] = {}
    for name, pipeline in pipelines.items():
        inputs = [[pipeline.resize(pipeline.decode(file)) for file in part] for part in batches]
        functions[f"{name} whole"] = _in_turn(pipeline.run, batches)
        functions[f"{name} model"] = _in_turn(torch.no_grad()(pipeline.model), inputs)
    timings = measure(functions, args.repeats)
    results: dict[str, dict[str, Any]] = {
        name: {
            part: {key: value / batch for key, value in timings[f"{name} {part}"].items()}
            for part in ("whole", "model")
        }
        for name in pipelines
    }
    if batch == args.batch_sizes[0]:
        for name, found in _time_stages(args, pipelines, batches).items():
            results[name]["stages"] = found
    for name, pipeline in pipelines.items():
        results[name]["peak_bytes"] = peak_memory(partial(pipeline.run, batches[0]), args.device)
    return results


def _in_turn(function: Callable[[Any], Any], arguments: Sequence[Any]) -> Callable[[], Any]:
    """A function that calls another with the next of some arguments each time, round and round."""
    waiting = cycle(arguments)
    return lambda: function(next(waiting))


def _time_stages(
    args: argparse.Namespace,
    pipelines: Mapping[str, stages.Pipeline],
    batches: Sequence[Sequence[Path]],
) -> dict[str, dict[str, Timing]]:
    """Of each model its stages, in the order of the work, and their sum in each run."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in pipelines}
    for part in [*batches] * args.repeats:
        for name, pipeline in pipelines.items():
            runs[name].append(pipeline.run_staged(part))
    return {
        name: {
            **{
                stage: timing_of([run.get(stage, 0.0) for run in found], len(batches[0]))
                for stage in stages.STAGES
                if any(stage in run for run in found)
            },
            "sum": timing_of([sum(run.values()) for run in found], len(batches[0])),
        }
        for name, found in runs.items()
    }


def evaluate(
    args: argparse.Namespace, pipelines: Mapping[str, stages.Pipeline]
) -> tuple[str, dict[str, float | None]]:
    """The main metric of the same models on --dataset, in percent.

    Returns:
        Its name and the value of each model which has one: Mask R-CNN if it is trained, and the
        metric is that of masks. None stands for an undefined value.
    """
    if not args.dataset:
        return "", {}
    cfg = pipelines[OURS].cfg
    metric = best_metric(cfg)
    values = {}
    for name, pipeline in pipelines.items():
        if name == OURS or (args.reference_weights and metric == "segm/AP"):
            own = cfg.clone()
            own.INPUT.FORMAT = pipeline.cfg.INPUT.FORMAT
            values[name] = metric_of(own, args.dataset, pipeline.model, metric)
    return metric, values
