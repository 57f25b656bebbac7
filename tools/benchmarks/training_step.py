"""The stages of a training step of a config, ours and plain in turns.

B images of the batch.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from solo_d2.config import load_config, override
from solo_d2.data import SOLODatasetMapper, register_datasets_of_config, resolve_num_classes
from solo_d2.engine import Trainer
from solo_d2.losses import solo_losses
from solo_d2.ops.mask_geometry import mask_boxes
from solo_d2.ops.rle import encode_masks
from solo_d2.utils.errors import ConfigError
from tools.benchmarks.common import Timing, peak_memory
from tools.benchmarks.plain_training import plain_losses, plain_targets
from tools.benchmarks.scenes import make_scene

# Of COCO, for configs that take their number from a data set.
NUM_CLASSES, NUM_LABELS = 80, 54
STAGES = ("data", "targets", "forward", "loss", "backward", "optimizer")


class StepBenchmark:
    """A model, its optimizer, and batches to train on."""

    def __init__(self, args: argparse.Namespace):
        """Build all that the config names.

        Args:
            args: of `benchmark.py train`.

        Raises:
            ConfigError: the config cannot be used.
        """
        self.args, self.device = args, args.device
        self.cfg = _prepare_config(args)
        self.model = Trainer.build_model(self.cfg).train()
        self.optimizer = Trainer.build_optimizer(self.cfg, self.model)
        amp = self.cfg.SOLVER.AMP
        self.precision = getattr(torch, amp.DTYPE) if amp.ENABLED else None
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.precision == torch.float16
        )
        self.pipelines = {"ours": self._ours, "plain": self._plain}

    def run(self) -> dict[str, Any]:
        """Measure; the results as json."""
        with tempfile.TemporaryDirectory() as folder:
            batches = self._batches(Path(folder))
            return self._measure(batches)

    def _measure(self, batches: Iterator[list[dict[str, Any]]]) -> dict[str, Any]:
        laps: dict[str, list[dict[str, float]]] = {name: [] for name in self.pipelines}
        started = time.perf_counter()
        for turn in range(1 + self.args.repeats):  # the first is to warm up
            if turn > 3 and time.perf_counter() - started > self.args.budget:
                break
            watch = Stopwatch(self.device)
            batch = next(batches)
            watch.lap("data")
            for name in self.pipelines:
                laps[name].append({**watch.laps, **self.step(batch, name)})
        compared = self._compare(batch)
        return {
            "config_file": self.args.config_file,
            "batch": len(batch),
            "precision": str(self.precision or torch.float32).removeprefix("torch."),
            **compared,
            "pipelines": {name: self._summary(laps[name][1:], batch, name) for name in laps},
        }

    def _summary(
        self, laps: list[dict[str, float]], batch: list[dict[str, Any]], name: str
    ) -> dict[str, Any]:
        timings = {stage: Timing.of([lap[stage] for lap in laps]) for stage in STAGES}
        whole = Timing.of([sum(lap.values()) - lap["data"] for lap in laps])
        return {
            "milliseconds": {
                **{stage: asdict(timing) for stage, timing in timings.items()},
                "all but data": asdict(whole),
            },
            "images_per_second": 1000 * len(batch) / whole.median,
            "peak_bytes": peak_memory(lambda: self.step(batch, name), self.device),
        }

    def step(self, batch: list[dict[str, Any]], name: str) -> dict[str, float]:
        """Take a step; milliseconds of its stages but data.

        Args:
            batch: training inputs.
            name: of the pipeline.
        """
        watch = Stopwatch(self.device)
        loss = torch.stack(list(self.pipelines[name](batch, watch).values())).sum()
        self.scaler.scale(loss).backward()
        watch.lap("backward")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        watch.lap("optimizer")
        return watch.laps

    def _compare(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
        """What is in the batch, and how far the losses of the pipelines are from each other."""
        with torch.no_grad():
            ours, plain = (f(batch, Stopwatch(self.device)) for f in self.pipelines.values())
        images = self.model.preprocess_image(batch)
        targets = self.model.assign_targets([x["instances"] for x in batch], images)
        return {
            "input_size": "x".join(str(side) for side in images.tensor.shape[-2:]),
            "samples": len(targets.cells),
            "difference": max(((ours[k] - plain[k]).abs() / plain[k]).item() for k in plain),
        }

    def _ours(self, batch: list[dict[str, Any]], watch: "Stopwatch") -> dict[str, Tensor]:
        """The losses, as `SOLO.forward` comes to them."""
        images = self.model.preprocess_image(batch)
        watch.lap("forward")
        targets = self.model.assign_targets([x["instances"] for x in batch], images)
        watch.lap("targets")
        with self._autocast():
            outputs = self.model.network(images.tensor)
            watch.lap("forward")
            losses = solo_losses(
                outputs.head, targets, head=self.model.head, **self.model.loss_params
            )
        watch.lap("loss")
        return losses | self._semantic_loss(batch, outputs, watch)

    def _plain(self, batch: list[dict[str, Any]], watch: "Stopwatch") -> dict[str, Tensor]:
        """The losses in loops, after the network as published."""
        model = self.model
        images = model.preprocess_image(batch)
        with self._autocast():
            outputs = model.network(images.tensor)
        watch.lap("forward")
        targets = plain_targets(
            *zip(*(model.gt_tensors(x["instances"]) for x in batch), strict=True),
            padded_size=tuple(images.tensor.shape[-2:]),
            num_grids=model.head.num_grids,
            scale_ranges=model.scale_ranges,
            mask_strides=model.head.mask_strides,
            num_classes=model.num_classes,
            center_scale=model.center_scale,
            cell_conflict=model.cell_conflict,
        )
        watch.lap("targets")
        params = {key: value for key, value in model.loss_params.items() if key != "memory_mib"}
        with self._autocast():
            losses = plain_losses(outputs.head, targets, head=model.head, **params)
        watch.lap("loss")
        return losses | self._semantic_loss(batch, outputs, watch)

    def _semantic_loss(
        self, batch: list[dict[str, Any]], outputs: Any, watch: "Stopwatch"
    ) -> dict[str, Tensor]:
        """Of a panoptic model, the same in both."""
        if outputs.semantic_logits is None:
            return {}
        with self._autocast():
            loss = self.model.semantic_loss(batch, outputs.semantic_logits)
        watch.lap("loss")
        return {"loss_sem_seg": loss}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not None)

    def _batches(self, folder: Path) -> Iterator[list[dict[str, Any]]]:
        """Batches without end, each mapped when it is asked for."""
        if self.args.dataset:
            yield from Trainer.build_train_loader(self.cfg)
        number = self.args.batch
        images = [_draw_image(folder, self.args, self.cfg, index) for index in range(number)]
        mapper = SOLODatasetMapper(self.cfg, is_train=True)
        while True:
            yield [mapper(copy.deepcopy(image)) for image in images]


class Stopwatch:
    """Adds up the milliseconds of stages; waits for the device at the end of each."""

    def __init__(self, device: torch.device):
        """Start."""
        self.device = device
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """What has passed since the last call was `stage`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.laps[stage] = self.laps.get(stage, 0.0) + 1000 * (now - self.last)
        self.last = now


def _prepare_config(args: argparse.Namespace) -> Any:
    """The config of the benchmark: one size, no weights, classes counted."""
    if not args.config_file:
        raise ConfigError("The step needs a config: name one of configs/ by --config-file FILE")
    cfg = load_config(args.config_file)
    override(cfg, args.opts)
    cfg.MODEL.DEVICE = str(args.device)
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = args.batch, 0
    cfg.INPUT.MIN_SIZE_TRAIN = (max(cfg.INPUT.MIN_SIZE_TRAIN),)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    solo = cfg.MODEL.SOLO
    if solo.CELL_CONFLICT == "nearest" or solo.MASK_TARGET != "mask":
        raise ConfigError(
            "MODEL.SOLO.CELL_CONFLICT must be 'all' or 'last' here, and MASK_TARGET 'mask': what "
            "else there is, is not published and has nothing to stand beside"
        )
    if args.dataset:
        register_datasets_of_config(cfg)
        resolve_num_classes(cfg, cfg.DATASETS.TRAIN)
    else:
        solo.NUM_CLASSES = solo.NUM_CLASSES or NUM_CLASSES
        semantic = cfg.MODEL.SEM_SEG_HEAD
        semantic.NUM_CLASSES = semantic.NUM_CLASSES or NUM_LABELS
    return cfg


def _draw_image(folder: Path, args: argparse.Namespace, cfg: Any, index: int) -> dict[str, Any]:
    """Write an image with objects, and what Detectron2 has to know of it."""
    (height, width), seed = args.image_size, args.seed + index
    classes = cfg.MODEL.SOLO.NUM_CLASSES
    masks, labels, _ = make_scene(args.instances, (height, width), classes, seed, distinct=True)
    rng = np.random.default_rng(seed)
    file, stuff = folder / f"{index}.jpg", folder / f"{index}.png"
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(file)
    Image.fromarray((~masks.any(dim=0)).byte().numpy()).save(stuff)
    annotations = [
        {"bbox": box, "bbox_mode": 0, "category_id": label, "segmentation": mask, "iscrowd": 0}
        for box, label, mask in zip(
            mask_boxes(masks).tolist(), labels.tolist(), encode_masks(masks), strict=True
        )
    ]
    return {
        "file_name": str(file),
        "sem_seg_file_name": str(stuff),
        "image_id": index,
        "height": height,
        "width": width,
        "annotations": annotations,
    }
