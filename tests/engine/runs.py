"""Tiny trainings of generated images, given as one's own data in COCO format."""

from solo_d2.engine import Trainer, argument_parser
from tests.modeling.tiny import tiny_config


def run_model():
    """The tiny model without res5, which has three quarters of the weights to save."""
    cfg = tiny_config()
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4"]
    solo = cfg.MODEL.SOLO
    solo.IN_FEATURES, solo.MASK_FEATURE.IN_FEATURES = ["p2", "p3", "p4", "p5"], ["p2", "p3", "p4"]
    solo.STRIDES, solo.NUM_GRIDS = [8, 8, 16, 16], [10, 8, 6, 5]
    solo.SCALE_RANGES = [[1, 24], [12, 48], [24, 96], [48, 512]]
    return cfg


def write_config(output, cfg=None, sizes=(64, 80, 96)):
    """A training of four iterations on images of some sizes, as a file in its folder."""
    cfg = cfg or run_model()
    cfg.MODEL.SOLO.NUM_CLASSES = 0
    cfg.SOLVER.IMS_PER_BATCH = cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 4
    cfg.SOLVER.MAX_ITER = 4
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = sizes, 96
    cfg.SEED = 7
    cfg.OUTPUT_DIR = str(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "tiny.yaml").write_text(cfg.dump())
    return output / "tiny.yaml"


def parse(file, *words):
    return argument_parser().parse_args([*map(str, ("--config-file", file, *words))])


def run_config(shapes, output, *opts):
    """A tiny training of `shapes`, given as one's own COCO-format data."""
    data = [
        *("--train-json", f"{shapes}/annotations/instances_train.json"),
        *("--train-images", f"{shapes}/train"),
        *("--val-json", f"{shapes}/annotations/instances_val.json"),
        *("--val-images", f"{shapes}/val"),
    ]
    return parse(write_config(output), *data, *opts)


def train(cfg, resume=False):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer
