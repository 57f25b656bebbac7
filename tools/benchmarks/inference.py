"""Inference with one model in several ways, beside eager PyTorch: speed, memory and accuracy.

One run times all variants in turns, on the same images, from bytes at the size of the network's
input to masks at the size of the image, and with --dataset evaluates each. Variants are the options
of TEST.SPEED, joined by "+" (fused, channels_last, bf16, fp16, compiled, compiled-static,
cuda-graphs), and exports to ONNX Runtime, which runs them on the CPU (onnx, onnx-fp16, onnx-int8,
onnx-int8-dynamic). One that cannot run here is a row that says why. Exporting and compiling takes
minutes and is not measured.

Without --weights the model is random, and without --dataset the images are noise: next to nothing
is found then, and what follows the network costs next to nothing.
"""

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from solo_d2.utils.errors import ConfigError
from solo_d2.utils.files import save_json
from tools.benchmarks.common import (
    Timing,
    add_common_arguments,
    describe_machine,
    markdown_table,
    measure,
    peak_memory,
)
from tools.benchmarks.nms import parse_size

MIB = 1 << 20
CPU = torch.device("cpu")
EAGER = "eager"
# Options of TEST.SPEED by a short name.
OPTIONS: dict[str, dict[str, Any]] = {
    "fused": {"fuse_bn": True},
    "channels_last": {"channels_last": True},
    "bf16": {"dtype": "bfloat16"},
    "fp16": {"dtype": "float16"},
    "compiled": {"compile": "dynamic"},
    "compiled-static": {"compile": "static"},
    "cuda-graphs": {"compile": "cuda-graphs"},
}
ONNX = ("onnx", "onnx-fp16", "onnx-int8", "onnx-int8-dynamic")
DEFAULT_VARIANTS = ("fused", "channels_last", "bf16", "compiled", "cuda-graphs", *ONNX)
# Height and width of noise: COCO's usual 480x640 as published models see it.
NOISE_SIZE = (800, 1067)
# Of COCO, for random models whose config takes them from a data set.
NUM_CLASSES, NUM_LABELS = 80, 54


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py inference`."""
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE")
    add("--weights", metavar="FILE", help="default: a random model")
    add("--dataset", metavar="NAME", help="to evaluate on, and for the images; default: noise")
    add(
        "--size",
        type=parse_size,
        metavar="HxW",
        help="of the timed images; default: as the config says, of noise 800x1067",
    )
    add("--batch-sizes", type=int, nargs="+", default=[1], metavar="B")
    add(
        "--variants",
        type=_variant,
        nargs="+",
        default=list(DEFAULT_VARIANTS),
        metavar="NAME",
        help=f"beside {EAGER}; default: {' '.join(DEFAULT_VARIANTS)}",
    )
    add(
        "--calibration-images",
        type=int,
        default=64,
        metavar="N",
        help="of DATASETS.TRAIN, for onnx-int8 with --dataset (%(default)s)",
    )
    add_common_arguments(parser)
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="of the config")


def _variant(name: str) -> str:
    if name != EAGER and name not in ONNX:
        try:
            speed_options(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return name


def speed_options(name: str) -> dict[str, Any]:
    """The fields of `SpeedOptions` that a name such as "fused+bf16" stands for.

    Raises:
        ValueError: a part is unknown, or two set one option.
    """
    options: dict[str, Any] = {}
    for part in name.split("+"):
        if part not in OPTIONS:
            known = ", ".join((EAGER, *OPTIONS, *ONNX))
            raise ValueError(f"{part!r} is no variant; there are {known}, some joined by '+'")
        if OPTIONS[part].keys() & options.keys():
            raise ValueError(f"{name!r} sets an option twice")
        options |= OPTIONS[part]
    return options


@dataclass
class Row:
    """What is known of a variant.

    Attributes:
        name: of the variant.
        failure: why it cannot run here; "" if it can.
        batches: for each batch size its timing ("milliseconds" of a batch) and "peak_bytes".
        figure: of the data set, in percent; None without one, or if it is not defined.
    """

    name: str
    failure: str = ""
    batches: dict[int, dict[str, Any]] = field(default_factory=dict)
    figure: float | None = None


def run(args: argparse.Namespace) -> None:
    """Measure all variants, print the table, save the results.

    Raises:
        ConfigError: config, weights or sizes cannot be used.
        DatasetError: the data set is unknown or incomplete.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = describe_machine(args.device)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if min(args.batch_sizes) < 1:
        raise ConfigError("--batch-sizes must be at least 1")
    benchmark = InferenceBenchmark(args)
    benchmark.measure()
    rows = list(benchmark.rows.values())
    print(
        f"\nimages of {'x'.join(map(str, benchmark.size))} and the like; ms: of an image, median "
        "(a tenth below - a tenth above); MiB: peak of a batch beyond the model\n"
    )
    print(markdown_table(table(rows, args.batch_sizes, benchmark.metric)))
    for row in rows:
        if row.failure:
            print(f"\n{row.name} cannot run here: {row.failure}")
    if args.output:
        found = {"size": benchmark.size, "metric": benchmark.metric}
        save_json(args.output, {"machine": machine, **found, "rows": [asdict(x) for x in rows]})


class InferenceBenchmark:
    """A model, images, and what its variants do with them.

    Attributes:
        rows: by the name of the variant, eager first.
        size: height and width of the first image.
        metric: name of the figure; "" without a data set.
    """

    def __init__(self, args: argparse.Namespace):
        """Load the model and images.

        Args:
            args: of `benchmark.py inference`.
        """
        self.args = args
        self.cfg, self.model = load(args)
        self.images = self._take_images()
        self.size = list(self.images[0]["image"].shape[1:])
        self.rows = {name: Row(name) for name in dict.fromkeys((EAGER, *args.variants))}
        self.metric = ""

    def _take_images(self) -> list[dict[str, Any]]:
        """As many as the largest batch has, on the host."""
        args, count = self.args, max(self.args.batch_sizes)
        if not args.dataset:
            generator = torch.Generator().manual_seed(args.seed)
            shape = (3, *(args.size or NOISE_SIZE))
            return [
                {"image": torch.randint(256, shape, generator=generator, dtype=torch.uint8)}
                for _ in range(count)
            ]
        from solo_d2.engine import Trainer

        loader = Trainer.build_test_loader(self.cfg, args.dataset)
        images = list(islice(chain.from_iterable(loader), count))
        if len(images) < count:
            raise ConfigError(f"--dataset {args.dataset} has less images than --batch-sizes")
        return [
            {"image": resized(x["image"], args.size), "height": x["height"], "width": x["width"]}
            for x in images
        ]

    def _calibration(self) -> list[list[dict[str, Any]]]:
        """Batches for the scales of 8-bit convolutions."""
        if not self.args.dataset:
            return [[image] for image in self.images]
        from solo_d2.engine import Trainer

        if not self.cfg.DATASETS.TRAIN:
            raise ConfigError("onnx-int8 is calibrated on DATASETS.TRAIN, which is empty")
        loader = Trainer.build_test_loader(self.cfg, self.cfg.DATASETS.TRAIN[0])
        return list(islice(loader, self.args.calibration_images))

    def measure(self) -> None:
        """Fill in the rows."""
        from tools.benchmarks.inference_variants import VariantBuilder

        with tempfile.TemporaryDirectory() as folder:
            builder = VariantBuilder(self.cfg, self.model, Path(folder), self._calibration)
            models = {}
            for name, row in self.rows.items():
                print(f"making {name} ...", flush=True)
                try:
                    models[name] = builder.make(name)
                    models[name](self.images[: self.args.batch_sizes[0]])  # compiles
                except ConfigError as error:
                    row.failure = " ".join(str(error).split())
                    models.pop(name, None)
            for batch in self.args.batch_sizes:
                self._measure_batch(builder, models, batch)
            if self.args.dataset:
                self._evaluate(models)

    @torch.no_grad()
    def _measure_batch(self, builder: Any, models: Mapping[str, Any], batch: int) -> None:
        """Time and memory of a batch size, for all variants in turns."""
        args, images = self.args, self.images[:batch]
        calls = {name: partial(model, images) for name, model in models.items()}
        timings = measure(calls, args.device, repeats=args.repeats, budget=args.budget)
        for name, call in calls.items():
            device = args.device
            if name in ONNX:
                # A session keeps the memory that it once took, so a new one shows what it takes.
                call, device = partial(builder.make(name), images), CPU
            self.rows[name].batches[batch] = {
                "milliseconds": asdict(timings[name]),
                "peak_bytes": peak_memory(call, device),
            }

    def _evaluate(self, models: Mapping[str, Any]) -> None:
        from solo_d2.engine import best_metric
        from solo_d2.evaluation.main_figure import main_figure

        self.metric = best_metric(self.cfg)
        for name, model in models.items():
            figure = main_figure(self.cfg, self.args.dataset, model, self.metric)
            self.rows[name].figure = figure if math.isfinite(figure) else None


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """The config and the model in eval mode; a random one without weights.

    Raises:
        ConfigError: they cannot be used.
        DatasetError: the data set is unknown or incomplete.
    """
    # Here and above, as options are listed where Detectron2 is missing too.
    from solo_d2.api.loading import load_model, make_config
    from solo_d2.config import load_config
    from solo_d2.data.catalog import check_datasets, register_datasets_of_config
    from solo_d2.engine import Trainer

    if args.weights:
        cfg = make_config(
            args.config_file, args.weights, device=str(args.device), overrides=args.opts
        )
        if args.dataset:
            register_datasets_of_config(cfg)
            check_datasets([args.dataset])
        return cfg, load_model(cfg)
    if args.dataset:
        raise ConfigError("--dataset needs --weights: a random model finds nothing")
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.DEVICE = str(args.device)
    for section, number in ((cfg.MODEL.SOLO, NUM_CLASSES), (cfg.MODEL.SEM_SEG_HEAD, NUM_LABELS)):
        section.NUM_CLASSES = section.NUM_CLASSES or number
    torch.manual_seed(args.seed)
    return cfg, Trainer.build_model(cfg).eval()


def resized(image: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """An image (3, H, W) uint8 at a size (H', W'); None leaves it."""
    if size is None:
        return image
    found = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)[0]
    return found.round().clamp(0, 255).byte()


def table(rows: Sequence[Row], batches: Sequence[int], metric: str) -> list[dict[str, str]]:
    """Rows to print, batch size after batch size; one for a variant that cannot run."""
    eager = next(row for row in rows if row.name == EAGER)
    lines = []
    for batch in batches:
        for row in rows:
            if batch in row.batches:
                lines.append(_line(row, eager, batch, metric))
    for row in rows:
        if row.failure:
            lines.append(dict.fromkeys(lines[0], "-") | {"variant": row.name, "ms": "see below"})
    return lines


def _line(row: Row, eager: Row, batch: int, metric: str) -> dict[str, str]:
    timing, eager_timing = (
        Timing(**found.batches[batch]["milliseconds"]) for found in (row, eager)
    )
    times = {name: getattr(timing, name) / batch for name in ("median", "least", "low", "high")}
    peak = row.batches[batch]["peak_bytes"]
    line = {
        "variant": row.name,
        "batch": str(batch),
        "ms": str(replace(timing, **times)),
        "images/s": f"{1000 / times['median']:.3g}",
        "speed": f"{eager_timing.median / timing.median:.2f}",
        "of least": f"{eager_timing.least / timing.least:.2f}",
        "MiB": "-" if peak is None else f"{peak / MIB:.0f}",
    }
    if metric:
        line |= {metric: "-", "change": "-"}
    if row.figure is not None and eager.figure is not None:
        line |= {metric: f"{row.figure:.2f}", "change": f"{row.figure - eager.figure:+.2f}"}
    return line
