"""Time the stages of a training step of a config, alternately by our and plain functions."""

import argparse
import copy
import tempfile
from collections.abc import Iterator
from functools import partial
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
from tools.benchmarks.common import (
    Stopwatch,
    comparison,
    peak_memory,
    size_text,
    timing_of,
)
from tools.benchmarks.plain_training import plain_losses, plain_targets
from tools.benchmarks.scenes import make_scene

# Numbers of COCO, for configs that take them from a data set.
NUM_CLASSES, NUM_LABELS = 80, 54
STAGES = ("data", "targets", "forward", "loss", "backward", "optimizer")


class StepBenchmark:
    """A model, its optimizer, and batches to train on."""

    def __init__(self, args: argparse.Namespace):
        """Build model and optimizer of the config of `benchmark.py train`."""
        self.args, self.device = args, args.device
        self.cfg = _prepare_config(args)
        self.model = Trainer.build_model(self.cfg).train()
        self.optimizer = Trainer.build_optimizer(self.cfg, self.model)
        amp = self.cfg.SOLVER.AMP
        self.precision = getattr(torch, amp.DTYPE) if amp.ENABLED else torch.float32
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.precision == torch.float16
        )

    def run(self) -> dict[str, Any]:
        """Measure; return the results for JSON."""
        runs: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
        with tempfile.TemporaryDirectory() as folder:
            batches = self.batches(Path(folder))
            for _ in range(1 + self.args.repeats):  # the first is the warm-up
                watch = Stopwatch(self.device)
                with watch.running("data"):
                    batch = next(batches)
                for name, times in runs.items():
                    seconds = self.step(batch, name)
                    whole = {"all but data": sum(seconds.values())}
                    times.append(watch.seconds | seconds | whole)
        stages = {
            stage: comparison(
                {name: timing_of([run[stage] for run in times[1:]]) for name, times in runs.items()}
            )
            for stage in (*STAGES, "all but data")
        }
        whole = stages["all but data"]["milliseconds"]
        return {
            "config_file": self.args.config_file,
            "batch": len(batch),
            "precision": str(self.precision).removeprefix("torch."),
            **self.compare(batch),
            "stages": stages,
            "pipelines": {
                name: {
                    "images_per_second": 1000 * len(batch) / whole[name]["median"],
                    "peak_bytes": peak_memory(partial(self.step, batch, name), self.device),
                }
                for name in runs
            },
        }

    def step(self, batch: list[dict[str, Any]], name: str) -> dict[str, float]:
        """Run a step, "ours" or "plain"; return the seconds of its stages except data."""
        watch = Stopwatch(self.device)
        loss = torch.stack(list(self.losses(batch, name, watch).values())).sum()
        with watch.running("backward"):
            self.scaler.scale(loss).backward()
        with watch.running("optimizer"):
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
        return watch.seconds

    def losses(self, batch: list[dict[str, Any]], name: str, watch: Stopwatch) -> dict[str, Tensor]:
        """Compute the losses as `SOLO.forward` does, or with targets and losses in loops."""
        model, is_plain = self.model, name == "plain"
        autocast = torch.autocast(
            self.device.type, self.precision, enabled=self.precision != torch.float32
        )
        with watch.running("forward"):
            images = model.preprocess_image(batch)
        with watch.running("targets"):
            assign = self._plain_targets if is_plain else model.assign_targets
            targets = assign([x["instances"] for x in batch], images)
        with watch.running("forward"), autocast:
            outputs = model.network(images.tensor)
        with watch.running("loss"), autocast:
            params = {
                k: v for k, v in model.loss_params.items() if k != "memory_mib" or not is_plain
            }
            function: Any = plain_losses if is_plain else solo_losses
            losses = function(outputs.head, targets, head=model.head, **params)
            if outputs.semantic_logits is not None:
                losses["loss_sem_seg"] = model.semantic_loss(batch, outputs.semantic_logits)
        return losses

    def _plain_targets(self, instances: list[Any], images: Any) -> Any:
        model = self.model
        return plain_targets(
            *zip(*(model.gt_tensors(x) for x in instances), strict=True),
            padded_size=tuple(images.tensor.shape[-2:]),
            num_grids=model.head.num_grids,
            scale_ranges=model.scale_ranges,
            mask_strides=model.head.mask_strides,
            num_classes=model.num_classes,
            center_scale=model.center_scale,
            cell_conflict=model.cell_conflict,
        )

    def compare(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
        """Describe the batch and compare our losses with the plain ones."""
        with torch.no_grad():
            ours, plain = (
                self.losses(batch, name, Stopwatch(self.device)) for name in ("ours", "plain")
            )
        images = self.model.preprocess_image(batch)
        targets = self.model.assign_targets([x["instances"] for x in batch], images)
        return {
            "input_size": size_text(images.tensor.shape[-2:]),
            "samples": len(targets.cells),
            "difference": max(((ours[k] - plain[k]).abs() / plain[k]).item() for k in plain),
        }

    def batches(self, folder: Path) -> Iterator[list[dict[str, Any]]]:
        """Yield batches without end, mapping each when it is requested."""
        if self.args.dataset:
            yield from Trainer.build_train_loader(self.cfg)
        number = self.args.batch
        images = [_draw_image(folder, self.args, self.cfg, index) for index in range(number)]
        mapper = SOLODatasetMapper(self.cfg, is_train=True)
        while True:
            yield [mapper(copy.deepcopy(image)) for image in images]


def _prepare_config(args: argparse.Namespace) -> Any:
    """Load the config: one image size, no weights, number of classes set."""
    if not args.config_file:
        raise ConfigError(
            "The step needs a config: add --config-file FILE, such as one of configs/"
        )
    cfg = load_config(args.config_file)
    override(cfg, args.opts)
    cfg.MODEL.DEVICE = str(args.device)
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = args.batch, 0
    cfg.INPUT.MIN_SIZE_TRAIN = (max(cfg.INPUT.MIN_SIZE_TRAIN),)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    solo = cfg.MODEL.SOLO
    if solo.CELL_CONFLICT == "nearest" or solo.MASK_TARGET != "mask":
        raise ConfigError(
            "MODEL.SOLO.CELL_CONFLICT must be 'all' or 'last' here, and MASK_TARGET 'mask': the "
            "plain implementation does not support other values"
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
