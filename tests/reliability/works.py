"""What is killed in tests/reliability: commands, on tiny data.

Each work takes a folder: `in` has what `prepare` made, `out` gets the results. A file `variant`
there changes what comes out. They return exit codes.
"""

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import tests.export.models  # noqa: F401  (registers its backbone)
import train_net
from demo import demo
from solo_d2.checkpoint.convert import Plan, write_conversion
from solo_d2.checkpoint.formats import OWN, Conversion
from solo_d2.checkpoint.matching import Match
from solo_d2.data.shapes.__main__ import main as shapes_main
from solo_d2.engine import argument_parser
from solo_d2.engine.launch import JobError, launch
from solo_d2.utils.commands import run_command
from solo_d2.utils.files import save_text
from tests import jobs, panoptic_files
from tests.api.models import arguments, panoptic_cfg, picture, save, save_model
from tests.export.exported import make_files as prepare_export
from tests.modeling.tiny import save_checkpoint, tiny_model
from tests.pictures import write_video
from tools import convert_panoptic, export_model, labels_to_coco

ROOT = Path(__file__).resolve().parents[2]


def prepare(folder, work):
    """Make what a work reads."""
    source = folder / "in"
    source.mkdir(parents=True)
    PREPARATIONS.get(work, lambda _: None)(source)


def variant(folder):
    """0, or what a test has written."""
    file = folder / "variant"
    return int(file.read_text()) if file.is_file() else 0


def words(*parts):
    return [str(part) for part in parts]


def shapes(folder):
    seed = variant(folder)
    command = words("shapes", "--output", folder / "out/shapes", "--num-train", 2, "--num-val", 1)
    with mock.patch.object(sys, "argv", [*command, *words("--seed", seed), *["--force"][:seed]]):
        return shapes_main()


def prepare_labels(source):
    for index in range(3):
        save(source / "images" / f"{index}.png", picture(20, 30, seed=index))
        mask = np.zeros((20, 30), np.uint8)
        mask[5:15, 5 : 10 + index] = 255
        save(source / "labels" / str(index) / "thing_1.png", mask)
        save(source / "other" / str(index) / "other_1.png", mask)


def labels(folder):
    source = folder / "in"
    chosen = source / ("other" if variant(folder) else "labels")
    command = ("--images", source / "images", "--labels", chosen, "--output", folder / "out")
    return labels_to_coco.main(words(*command))


def panoptic(folder):
    source = folder / "in/data"
    command = ("--json", source / "panoptic.json", "--png-dir", source / "panoptic")
    again = ("--force",) * variant(folder)
    return convert_panoptic.main(words(*command, "--output", folder / "out/converted", *again))


def conversion(folder):
    state = {"head.a": torch.full((1000,), float(variant(folder)))}
    plan = Plan(
        source=OWN,
        conversion=Conversion(state, {"head.a": "a"}, ()),
        base=ROOT / "configs/base/solov2_fpn.yaml",
        settings={"MODEL.SOLO.NUM_CLASSES": 3 + variant(folder)},
        classes=["cat"],
        match=Match(state, [], [], {}, []),
    )
    return run_command("convert", lambda: write_conversion(plan, folder / "out/model.pth"))


def prepare_demo(source):
    save_model(source / "model")
    for index in range(2):
        save(source / "images" / f"{index}.png", picture(seed=index))
    write_video(source / "video.avi", frames=[picture(seed=index) for index in range(3)])


def stills(folder):
    out = folder / "out"
    results = ("--output", out / "pictures", "--save-masks", out / "masks")
    return _demo(folder, "--input", folder / "in/images", *results)


def video(folder):
    output = ("--output", folder / "out/a.avi")
    return _demo(folder, "--video-input", folder / "in/video.avi", *output)


def _demo(folder, *more):
    model = arguments(folder / "in/model/model.pth")
    least = ("--confidence-threshold", 0.5 if variant(folder) else 0)
    return demo.main([*model, *words(*least, "--json", folder / "out/a.json", *more)])


def prepare_training(source):
    jobs.make_data(source)
    jobs.write_config(source)


def training(folder):
    keys = ("SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.IMS_PER_BATCH", 2)
    keys += ("SOLVER.REFERENCE_IMS_PER_BATCH", 2, "TEST.EVAL_PERIOD", 3)
    return _train(folder, "--resume", *keys)


def prepare_evaluation(source):
    """A panoptic model, and a panoptic data set of a few images."""
    from solo_d2.data import ShapesParams, ensure_shapes
    from solo_d2.data.panoptic_conversion import ensure_converted

    root = ensure_shapes(source / "shapes", ShapesParams(num_train=0, num_val=2))
    cfg = panoptic_cfg()
    paths = [root / name for name in ("annotations/panoptic_val.json", "panoptic_val", "val")]
    ensure_converted(*paths[:2])  # so that "out" alone is written to
    cfg.DATASETS.COCO_PANOPTIC_FORMAT = [["kept_val", *map(str, paths)]]
    cfg.DATASETS.TEST = ("kept_val",)
    cfg.TEST.KEEP_PANOPTIC_PREDICTIONS = True
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    save_checkpoint(source, cfg, tiny_model(cfg))


def evaluation(folder):
    return _train(folder, "--eval-only", "MODEL.WEIGHTS", folder / "in/model.pth")


def _train(folder, *more):
    command = ("--config-file", folder / "in/config.yaml", *more)
    command = words(*command, "OUTPUT_DIR", folder / "out", "DATALOADER.NUM_WORKERS", 0)
    args = argument_parser().parse_args(command)
    return run_command("", lambda: launch(train_net.main, args), errors=(JobError,), failed=1)


def export(folder):
    source = folder / "in"
    model = ("--config-file", source / "config.yaml", "--weights", source / "model.pth")
    output = ("--check-images", source / "images", "--output", folder / "out/model.onnx")
    return export_model.main(words(*model, *output))


def one_file(folder):
    """The least that there is: a file of 1000 bytes."""
    text = f"[{variant(folder)}, " + " " * 1000 + "0]"
    return run_command("write", lambda: save_text(folder / "out/a.json", text))


WORKS = {
    work.__name__: work
    for work in (
        *(one_file, shapes, labels, panoptic, conversion),
        *(stills, video, training, evaluation, export),
    )
}
PREPARATIONS = {
    "labels": prepare_labels,
    "panoptic": lambda source: panoptic_files.write(source / "data"),
    **dict.fromkeys(("stills", "video"), prepare_demo),
    "training": prepare_training,
    "evaluation": prepare_evaluation,
    "export": prepare_export,
}
