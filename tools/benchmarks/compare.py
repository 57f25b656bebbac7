"""Compare this project with AdelaiDet's SOLOv2, with equal weights and images, in one process.

    python tools/benchmark.py compare --peer path/to/AdelaiDet --size 800x1216

The peer's model is built from its own checkout and config; its compiled operators are not needed.
Its random weights are loaded into our model, with the class bias shifted so that about --candidates
cells pass the score threshold. Both then infer and train alternately on the same noise images. "as
in training" is our model without TEST.SPEED.
"""

import argparse
import copy
import importlib
import sys
import tempfile
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from solo_d2.checkpoint.checkpointer import SOLOCheckpointer
from solo_d2.config import load_config
from solo_d2.engine import Trainer
from solo_d2.modeling.speed import SpeedOptions, speed_up
from solo_d2.ops.mask_iou import match_pairs, pairwise_mask_iou
from solo_d2.utils.errors import ConfigError
from tools.benchmarks.common import (
    add_common_arguments,
    begin,
    compare,
    markdown_table,
    parse_size,
    save,
    table_row,
)
from tools.benchmarks.scenes import make_instances

NUM_CLASSES = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py compare`."""
    add = parser.add_argument
    add("--peer", type=Path, required=True, metavar="DIR", help="checkout of AdelaiDet")
    add("--config-file", default="configs/coco/solov2_R50_3x.yaml", help="our config (%(default)s)")
    add("--size", type=parse_size, default=(800, 1216), help="of images (%(default)s)")
    add("--candidates", type=int, default=600, help="cells above the threshold (%(default)s)")
    add("--objects", type=int, default=8, help="per training image (%(default)s)")
    add("--batch", type=int, default=2, help="batch size of a training step (%(default)s)")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Compare results, times and memory, print the tables, save the results."""
    machine = begin(args)
    torch.manual_seed(args.seed)
    peer = load_peer(args)
    images = [{"image": _noise(args, i), "height": args.size[0], "width": args.size[1]}
              for i in range(args.batch)]  # fmt: skip
    pass_candidates(peer, images[:1], args.candidates)
    ours, cfg = load_ours(args, peer)
    fast = speed_up(copy.deepcopy(ours), SpeedOptions.from_config(cfg))
    agreement = compare_results(fast, peer, images[:1])
    print(f"\n{agreement['equal']} of {agreement['instances']} instances agree (IoU above 0.99); "
          f"largest difference of scores {agreement['largest_score_difference']:.1e}")  # fmt: skip
    inference = compare(
        {
            "ours": partial(infer, fast, images[:1]),
            "peer": partial(infer, peer, images[:1]),
            "as in training": partial(infer, ours.eval(), images[:1]),
        },
        args,
    )
    scenes = [
        make_instances(args.objects, args.size, NUM_CLASSES, args.seed + number)
        for number in range(args.batch)
    ]
    batch = [x | {"instances": y} for x, y in zip(images, scenes, strict=True)]
    training = compare({"ours": _step(ours, batch), "peer": _step(peer, batch)}, args)
    rows = [{"part": name, **x} for name, x in (("inference", inference), ("training", training))]
    print("\nmilliseconds: median (interquartile range); MiB: peak beyond the inputs\n")
    print("\n\n".join(markdown_table([table_row(row)]) for row in rows))
    save(args, {"machine": machine, "agreement": agreement, "results": rows})


def load_peer(args: argparse.Namespace) -> nn.Module:
    """Build the peer's SOLOv2 with random weights, without its compiled operators."""
    package, config = args.peer / "adet", args.peer / "configs/SOLOv2/R50_3x.yaml"
    for path in (package / "modeling/solov2", config):
        if not path.exists():
            raise ConfigError(
                f"--peer {args.peer} is not a checkout of AdelaiDet: {path} is missing"
            )
    for name, path in (("adet", package), ("adet.modeling", package / "modeling")):
        module = types.ModuleType(name)  # the package's own imports all models
        module.__path__ = [str(path)]
        sys.modules[name] = module
    cfg = importlib.import_module("adet.config").get_cfg()
    importlib.import_module("adet.modeling.solov2")  # registers the model
    cfg.merge_from_file(str(config))
    cfg.MODEL.DEVICE = str(args.device)
    return build_model(cfg)


@torch.no_grad()
def pass_candidates(peer: Any, images: list[dict[str, Any]], number: int) -> None:
    """Shift the peer's class bias until about `number` cells pass its score threshold."""
    found: list[Tensor] = []
    hook = peer.ins_head.cate_pred.register_forward_hook(lambda *x: found.append(x[2]))
    peer.ins_head.cate_pred.weight.mul_(20)  # random weights give all cells similar scores
    given = peer.score_threshold
    peer.score_threshold = 2.0  # no masks: there are thousands of cells
    infer(peer, images)
    peer.score_threshold = given
    hook.remove()
    best = torch.cat([logits.amax(dim=1).flatten() for logits in found]).sort(descending=True)[0]
    threshold = torch.logit(torch.tensor(float(peer.score_threshold)))
    peer.ins_head.cate_pred.bias += threshold.to(best) - best[min(number, len(best) - 1)]


def load_ours(args: argparse.Namespace, peer: nn.Module) -> tuple[Any, Any]:
    """Build our model with the peer's weights; return the model and its config."""
    overrides = ["MODEL.DEVICE", str(args.device), "MODEL.SOLO.NUM_CLASSES", NUM_CLASSES]
    cfg = load_config(args.config_file, overrides)
    model = Trainer.build_model(cfg)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "peer.pth"
        torch.save({"model": peer.state_dict()}, file)
        SOLOCheckpointer(model, whole=True).load(str(file))
    return model, cfg


@torch.no_grad()
def infer(model: nn.Module, images: list[dict[str, Any]]) -> Any:
    """Run a model in evaluation mode."""
    return model.eval()(images)


def compare_results(
    ours: nn.Module, peer: nn.Module, images: list[dict[str, Any]]
) -> dict[str, Any]:
    """Match our instances with the peer's by mask."""
    found, expected = (infer(model, images)[0]["instances"].to("cpu") for model in (ours, peer))
    iou = pairwise_mask_iou(found.pred_masks.bool(), expected.pred_masks.bool())
    iou *= found.pred_classes[:, None] == expected.pred_classes[None]
    pairs = match_pairs(iou, 0.99)
    differences = [abs(float(found.scores[i] - expected.scores[j])) for i, j in pairs]
    return {
        "instances": len(expected),
        "equal": len(pairs),
        "largest_score_difference": max(differences, default=0.0),
    }


def _noise(args: argparse.Namespace, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(args.seed + number)
    small = torch.rand(1, 3, args.size[0] // 16, args.size[1] // 16, generator=generator)
    return 255 * nn.functional.interpolate(small, args.size, mode="bicubic").clamp(0, 1)[0]


def _step(model: nn.Module, batch: list[dict[str, Any]]) -> Callable[[], None]:
    """Return a training step that keeps the weights (learning rate 0)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        with EventStorage():
            sum(model(batch).values()).backward()
        optimizer.step()

    return step
