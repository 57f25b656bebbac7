"""Compare variants of a model with eager PyTorch: speed, memory and accuracy.

All variants are timed alternately on the same images, from bytes at the input size to masks at the
image size; --dataset evaluates each. Variants are the options of TEST.SPEED, joined by "+" (fused,
channels_last, bf16, fp16, compiled, compiled-static, cuda-graphs), and exports on the CPU, run by
ONNX Runtime (onnx, onnx-fp16, onnx-int8, onnx-int8-dynamic) or OpenVINO (openvino, openvino-int8).
The table gives the reason if a variant is unavailable. Exporting and compiling take minutes and are
not measured.

Without --weights the weights are random, and without --dataset the images are noise: there are
hardly any detections then, so post-processing takes hardly any time.
"""

import argparse
import copy
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from solo_d2.api.classes import find_classes
from solo_d2.api.loading import load_model, make_config
from solo_d2.config import load_config
from solo_d2.data import catalog
from solo_d2.engine import Trainer, best_metric
from solo_d2.evaluation import run as evaluation
from solo_d2.export import programs
from solo_d2.export.onnx_model import OnnxModel, detector_inputs, load_detector, require_packages
from solo_d2.export.pipeline import ExportPipeline
from solo_d2.export.quantization import quantize_onnx
from solo_d2.modeling.speed import SpeedOptions, speed_up
from solo_d2.utils.errors import ConfigError
from tools.arguments import add_overrides
from tools.benchmarks.common import (
    CPU,
    add_common_arguments,
    begin,
    markdown_table,
    measure,
    memory_text,
    parse_size,
    peak_memory,
    save,
    size_text,
    timing_text,
)

EAGER = "eager"
# Options of TEST.SPEED by a short name.
OPTIONS: dict[str, dict[str, Any]] = {
    "fused": {"fuse_bn": True},
    "channels_last": {"channels_last": True},
    "winograd": {"winograd": True},
    "bf16": {"dtype": "bfloat16"},
    "fp16": {"dtype": "float16"},
    "compiled": {"compile": "dynamic"},
    "compiled-static": {"compile": "static"},
    "cuda-graphs": {"compile": "cuda-graphs"},
}
# Exported files: what runs them, and which file they are.
ONNX = {
    "onnx": ("onnxruntime", "onnx"),
    "onnx-fp16": ("onnxruntime", "onnx-fp16"),
    "onnx-int8": ("onnxruntime", "onnx-int8"),
    "onnx-int8-dynamic": ("onnxruntime", "onnx-int8-dynamic"),
    "openvino": ("openvino", "onnx"),
    "openvino-int8": ("openvino", "onnx-int8"),
}
DEFAULT_VARIANTS = ("fused", "channels_last", "winograd", "bf16", "compiled", "cuda-graphs", *ONNX)
# Height and width of noise: COCO's typical 480x640, resized as for published models.
NOISE_SIZE = (800, 1067)
# Numbers of COCO, for random models whose config takes them from a data set.
NUM_CLASSES, NUM_LABELS = 80, 54


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py inference`."""
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE")
    add("--weights", metavar="FILE", help="default: random weights")
    add("--dataset", metavar="NAME", help="data set to evaluate on and to take images from; "
        "default: noise")  # fmt: skip
    add("--size", type=parse_size, metavar="HxW", help="model input; default: as the config says, "
        "800x1067 for noise")  # fmt: skip
    add("--batch-sizes", type=int, nargs="+", default=[1], metavar="B")
    add_overrides(parser)
    add("--variants", type=_variant, nargs="+", default=list(DEFAULT_VARIANTS), metavar="NAME",
        help=f"in addition to {EAGER}; default: {' '.join(DEFAULT_VARIANTS)}")  # fmt: skip
    add("--calibration-images", type=int, default=64, metavar="N", help="images of DATASETS.TRAIN "
        "for onnx-int8 with --dataset (%(default)s)")  # fmt: skip
    add_common_arguments(parser)


def speed_options(name: str) -> dict[str, Any]:
    """Return the fields of `SpeedOptions` for a name such as "fused+bf16"."""
    options: dict[str, Any] = {}
    for part in name.split("+"):
        if part not in OPTIONS:
            known = ", ".join((EAGER, *OPTIONS, *ONNX))
            raise argparse.ArgumentTypeError(
                f"{part!r} is no variant; choose from {known}, joined by '+'"
            )
        if OPTIONS[part].keys() & options.keys():
            raise argparse.ArgumentTypeError(f"{name!r} sets an option twice")
        options |= OPTIONS[part]
    return options


def _variant(name: str) -> str:
    if name not in (EAGER, *ONNX):
        speed_options(name)  # refuses unknown ones
    return name


def run(args: argparse.Namespace) -> None:
    """Measure all variants, print the table, save the results."""
    machine = begin(args)
    if min(args.batch_sizes) < 1:
        raise ConfigError("--batch-sizes must be at least 1")
    cfg, model = load(args)
    images = take_images(args, cfg)
    size = list(images[0]["image"].shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        variants = Variants(args, cfg, model, images, Path(folder))
        metric, rows = measure_variants(variants)
    print(
        f"\nimages of about {size_text(size)}; ms: per image, median (interquartile range); "
        "MiB: peak of a batch, without the model\n"
    )
    print(markdown_table(table(rows, args.batch_sizes, metric)))
    for row in rows:
        if row["failure"]:
            print(f"\n{row['name']} is unavailable: {row['failure']}")
    save(args, {"machine": machine, "size": size, "metric": metric, "rows": rows})


def take_images(args: argparse.Namespace, cfg: Any) -> list[dict[str, Any]]:
    """Return Detectron2's inputs, as many as the largest batch has, on the host."""
    count = max(args.batch_sizes)
    if not args.dataset:
        generator = torch.Generator().manual_seed(args.seed)
        shape = (count, 3, *(args.size or NOISE_SIZE))
        noise = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        return [{"image": image} for image in noise]
    loader = Trainer.build_test_loader(cfg, args.dataset)
    images = list(islice(chain.from_iterable(loader), count))
    if len(images) < count:
        raise ConfigError(f"--dataset {args.dataset} has fewer images than --batch-sizes")
    return [
        {"image": resized(x["image"], args.size), "height": x["height"], "width": x["width"]}
        for x in images
    ]


@dataclass
class Variants:
    """Creates variants of a model in eval mode; the model itself is not changed."""

    args: argparse.Namespace
    cfg: Any
    model: Any
    images: list[dict[str, Any]]
    folder: Path  # for exported files

    def make(self, name: str) -> Any:
        """Create a variant with the interface of a Detectron2 model; ConfigError if unavailable."""
        if name == EAGER:
            return self.model
        if name not in ONNX:
            return speed_up(copy.deepcopy(self.model), SpeedOptions(**speed_options(name)))
        runtime, file = ONNX[name]
        threads = torch.get_num_threads()
        return OnnxModel(load_detector(self._onnx_file(file), runtime, threads=threads))

    def _onnx_file(self, name: str) -> Path:
        path = self.folder / f"{name}.onnx"
        if path.exists():
            return path
        if name in ("onnx", "onnx-fp16"):
            require_packages("onnx", "onnxscript", "onnxruntime")  # before a minute of work
            pipeline = ExportPipeline(self.model, half=name == "onnx-fp16")
            classes = find_classes(self.cfg)
            names_and_ids = classes.names, classes.json_ids
            info = programs.describe(self.model, pipeline, self.cfg, *names_and_ids)
            programs.save_onnx(programs.trace(pipeline, info), path)
        else:
            calibration = None if name == "onnx-int8-dynamic" else self._calibration()
            quantize_onnx(self._onnx_file("onnx"), path, calibration)
        return path

    def _calibration(self) -> list[Any]:
        batches: Any = [[image] for image in self.images]
        if self.args.dataset:
            if not self.cfg.DATASETS.TRAIN:
                raise ConfigError("onnx-int8 is calibrated on DATASETS.TRAIN, which is empty")
            loader = Trainer.build_test_loader(self.cfg, self.cfg.DATASETS.TRAIN[0])
            batches = islice(loader, self.args.calibration_images)
        detector = load_detector(self._onnx_file("onnx"))
        return [detector.graph_inputs(*detector_inputs(batch)) for batch in batches]


def measure_variants(variants: Variants) -> tuple[str, list[dict[str, Any]]]:
    """Time all variants alternately, and evaluate each if there is a data set.

    Returns:
        The name of the metric, "" without a data set; and a row for each variant, eager first:
        "name", "failure" ("" if it runs), "batches" (batch size -> "milliseconds" and "peak_bytes"
        of a batch) and "metric" (percent or None).
    """
    args, cfg = variants.args, variants.cfg
    rows: dict[str, dict[str, Any]] = {
        name: {"name": name, "failure": "", "batches": {}, "metric": None}
        for name in dict.fromkeys((EAGER, *args.variants))
    }
    models = {}
    for name, row in rows.items():
        print(f"making {name} ...", flush=True)
        try:
            model = variants.make(name)
            model(variants.images[: args.batch_sizes[0]])  # compiles
        except ConfigError as error:
            row["failure"] = " ".join(str(error).split())
        else:
            models[name] = model
    for batch in args.batch_sizes:
        for name, found in _measure_batch(variants, models, batch).items():
            rows[name]["batches"][batch] = found
    metric = best_metric(cfg) if args.dataset else ""
    for name, model in models.items() if metric else ():
        value = evaluation.main_metric(cfg, args.dataset, model, metric)
        rows[name]["metric"] = value if math.isfinite(value) else None
    return metric, list(rows.values())


@torch.no_grad()
def _measure_batch(variants: Variants, models: Mapping[str, Any], batch: int) -> dict[str, Any]:
    args, images = variants.args, variants.images[:batch]
    calls = {name: partial(model, images) for name, model in models.items()}
    timings = measure(calls, args.repeats)
    found = {}
    for name, call in calls.items():
        device = args.device
        if name in ONNX:
            # A session keeps its memory, so measure a new one.
            call, device = partial(variants.make(name), images), CPU
        found[name] = {"milliseconds": timings[name], "peak_bytes": peak_memory(call, device)}
    return found


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """Return the config and the model in eval mode, with random weights without --weights."""
    if args.weights:
        cfg = make_config(
            args.config_file, args.weights, device=str(args.device), overrides=args.opts
        )
        if args.dataset:
            catalog.register_datasets_of_config(cfg)
            catalog.check_datasets([args.dataset])
        return cfg, load_model(cfg)
    if args.dataset:
        raise ConfigError("--dataset needs --weights: random weights give no detections")
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.DEVICE = str(args.device)
    for section, number in ((cfg.MODEL.SOLO, NUM_CLASSES), (cfg.MODEL.SEM_SEG_HEAD, NUM_LABELS)):
        section.NUM_CLASSES = section.NUM_CLASSES or number
    torch.manual_seed(args.seed)
    return cfg, Trainer.build_model(cfg).eval()


def resized(image: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """Resize an image (3, H, W) uint8 to (H', W'); None keeps its size."""
    if size is None:
        return image
    found = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)[0]
    return found.round().clamp(0, 255).byte()


def table(
    rows: Sequence[Mapping[str, Any]], batches: Sequence[int], metric: str
) -> list[dict[str, str]]:
    """Return the rows to print, one per batch size and variant, then those that failed."""
    eager = next(row for row in rows if row["name"] == EAGER)
    lines = [
        _line(row, eager, batch, metric)
        for batch in batches
        for row in rows
        if batch in row["batches"]
    ]
    failed = [row["name"] for row in rows if row["failure"]]
    return lines + [
        dict.fromkeys(lines[0], "-") | {"variant": name, "ms": "see below"} for name in failed
    ]


def _line(
    row: Mapping[str, Any], eager: Mapping[str, Any], batch: int, metric: str
) -> dict[str, str]:
    timing, eager_timing = (found["batches"][batch]["milliseconds"] for found in (row, eager))
    line = {
        "variant": row["name"],
        "batch": str(batch),
        "ms": timing_text({key: value / batch for key, value in timing.items()}),
        "images/s": f"{1000 * batch / timing['median']:.3g}",
        "speed": f"{eager_timing['median'] / timing['median']:.2f}",
        "MiB": memory_text(row["batches"][batch]["peak_bytes"]),
    }
    value, reference = row["metric"], eager["metric"]
    if metric and None in (value, reference):
        line |= {metric: "-", "change": "-"}
    elif metric:
        line |= {metric: f"{value:.2f}", "change": f"{value - reference:+.2f}"}
    return line
