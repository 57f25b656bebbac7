"""What the processes of the tests' jobs do; each of them imports this."""

import copy
import json
import os
import runpy
import signal
import sys
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.samplers import InferenceSampler
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from solo_d2.data.unreadable import UNREADABLE
from solo_d2.engine import Trainer, argument_parser, setup
from solo_d2.engine.bad_step import RunRecord
from solo_d2.engine.launch import distribute
from solo_d2.engine.step import StepTrainer
from solo_d2.evaluation.coco_results import FastCOCOEvaluator
from solo_d2.evaluation.lvis_results import FastLVISEvaluator
from solo_d2.utils.errors import BadNumbersError, DatasetError
from tests.engine import runs
from tests.evaluation.made_up import CATEGORIES, coco_truth, lvis_truth, predictions
from tests.json_damage import save_boxes
from tests.modeling.tiny import image, panoptic_config, tiny_config, tiny_model, with_sem_seg

ITERATIONS, CHECKPOINT, KILLED = 4, 2, 3  # the first two as in tests/engine/runs.py


def parse_args(*arguments):
    return argument_parser().parse_args([str(argument) for argument in arguments])


def fork(start_processes):
    """Wrap torch's `start_processes` to fork from a process that has imported everything."""
    get_context("forkserver").set_forkserver_preload(["tests.jobs"])

    def start(fn, *args, **options):
        fn = partial(_with_environ, dict(os.environ), fn)
        return start_processes(fn, *args, **{**options, "start_method": "forkserver"})

    return start


def _with_environ(environ, function, *args):
    os.environ.update(environ)
    torch.set_num_threads(1)
    return function(*args)


def torchrun(num_processes, *words):
    """Run train_net.py as torchrun does, without a process of its own for the launcher."""
    options = {"nproc_per_node": num_processes, "max_restarts": 0, "start_method": "forkserver"}
    options |= {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "job"}
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        elastic_launch(LaunchConfig(min_nodes=1, max_nodes=1, **options), _train_net)(*words)
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)


def _train_net(*words):
    sys.argv[:] = ["train_net.py", *words]
    try:
        runpy.run_path("train_net.py", run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


def main(args):
    """Keep gradients and metrics in OUTPUT_DIR, then train until a process is killed."""
    folder = Path(args.opts[args.opts.index("OUTPUT_DIR") + 1])
    everything = {
        "gradients": {name: gradients(name) for name in BATCHES},
        "metrics": {name: metrics(name) for name in PREDICTED},
        "stopped": {name: stopped(name, folder) for name in STOPS},
    }
    if comm.is_main_process():
        torch.save(everything, folder / "processes.pth")
    trainer = Trainer(setup(args))
    trainer.resume_or_load(resume=False)
    trainer.register_hooks([KillOne()])
    trainer.train()


class KillOne(HookBase):
    def before_step(self):
        if self.trainer.iter == KILLED and comm.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


# Objects of each of four images; the second process has the last two.
BATCHES = {"objects": (3, 2, 4, 1), "one without": (3, 2, 0, 0), "none": (0, 0, 0, 0)}
BATCHES["panoptic"] = BATCHES["objects"]


def gradients(name):
    """Of a batch, of which each process has its share."""
    batch = [image(num=num, seed=seed) for seed, num in enumerate(BATCHES[name])]
    if name == "panoptic":
        batch = [with_sem_seg(sample, seed=seed) for seed, sample in enumerate(batch)]
        # A process with few labelled pixels counts as much as it has.
        batch[0]["sem_seg"][:, 20:] = 255
    size = len(batch) // comm.get_world_size()
    model = tiny_model(panoptic_config() if name == "panoptic" else tiny_config())
    trained = distribute(model.train())
    with EventStorage():
        losses = trained(batch[comm.get_rank() * size :][:size])
    sum(losses.values()).backward()
    return {key: p.grad for key, p in model.named_parameters() if p.requires_grad}


# Images with predictions, of 5; what is counted by.
PREDICTED = {"coco": 5, "lvis": 5, "one process has none": 2}


def metrics(name):
    """Of predictions, of which each process has those of its images."""
    truth = lvis_truth(5) if name == "lvis" else coco_truth(5)
    results = predictions(truth)
    ids = sorted(image["id"] for image in truth["images"])
    mine = {ids[index] for index in InferenceSampler(len(ids))} & set(ids[: PREDICTED[name]])
    file = Path(os.environ["JOB_FOLDER"]) / f"{name} {comm.get_rank()}.json"
    file.write_text(json.dumps(truth))
    MetadataCatalog.get(file.stem).set(
        json_file=str(file),
        thing_classes=[str(category) for category in CATEGORIES],
        thing_dataset_id_to_contiguous_id={key: i for i, key in enumerate(CATEGORIES)},
    )
    evaluator = (FastLVISEvaluator if name == "lvis" else FastCOCOEvaluator)(file.stem, None)
    evaluator.reset()
    for result in copy.deepcopy(results):
        if result["image_id"] in mine:
            result["category_id"] = CATEGORIES.index(result["category_id"])
            entry = {"image_id": result["image_id"], "instances": [result]}
            evaluator._predictions.append(entry)
    return evaluator.evaluate()


class Weight(nn.Module):
    """The loss of a batch is its only weight times a factor."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch):
        return {"loss": self.weight * batch[0]["factor"]}


# What is in the second batch of each of two processes, of trainings that then stop.
STOPS = {
    "unreadable": (
        {UNREADABLE: {"a.jpg": "torn"}},
        {UNREADABLE: {"b.jpg": "empty", "a.jpg": "torn"}},
    ),
    "numbers": ({"file_name": "good.jpg"}, {"file_name": "bad.jpg", "factor": float("nan")}),
}


def stopped(name, folder):
    """What each process says in the end, its weight and whether its first step was finite."""
    model = distribute(Weight())
    trainer = StepTrainer(
        model.train(),
        [[{"factor": 1.0}], [{"factor": 1.0, **STOPS[name][comm.get_rank()]}]],
        torch.optim.SGD(model.parameters(), lr=0.5),
        max_unreadable=1,
        record=RunRecord(str(folder / name), "", 7),
    )
    said = ""
    with EventStorage():
        for trainer.iter in range(2):
            try:
                trainer.run_step()
            except (BadNumbersError, DatasetError) as error:
                said = str(error)
    result = {"said": said, "weight": model.module.weight.item(), "stopped_at": trainer.iter}
    return comm.gather(result)


def make_data(folder):
    """8 images to train on and 5 to evaluate on, all of one size, in COCO's format."""
    rng = np.random.default_rng(0)
    for split, num in (("train", 8), ("val", 5)):
        (folder / split).mkdir(parents=True)
        boxes = [[] for _ in range(num)]
        for number, objects in enumerate(boxes, start=1):
            pixels = rng.integers(0, 60, (96, 128, 3), dtype=np.uint8)
            for category in (1, 2, 3):
                x, y, w, h = (int(v) for v in rng.integers((0, 0, 16, 16), (70, 50, 50, 40)))
                pixels[y : y + h, x : x + w, category - 1] = 220
                objects.append((category, x, y, w, h))
            cv2.imwrite(str(folder / split / f"{number}.png"), pixels)
        save_boxes(folder / f"{split}.json", (96, 128), boxes, ["class 1", "class 2", "class 3"])


def write_config(folder):
    """A training of that data; few iterations, and predictions that are not sure."""
    cfg = tiny_config()
    cfg.MODEL.SOLO.SCORE_THRESH_TEST = cfg.MODEL.SOLO.KEEP_THRESH_TEST = 0.001
    cfg.DATASETS.COCO_FORMAT = [
        [f"job_{split}", f"{folder}/{split}.json", f"{folder}/{split}"]
        for split in ("train", "val")
    ]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("job_train",), ("job_val",)
    cfg.TEST.EVAL_PERIOD = ITERATIONS
    return runs.write_config(folder, cfg, sizes=(96,)).rename(folder / "config.yaml")
