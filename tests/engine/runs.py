"""Tiny trainings of generated images, given as one's own data in COCO format."""

from detectron2.data import DatasetCatalog, MetadataCatalog

from solo_d2.engine import Trainer, argument_parser
from tests.modeling.tiny import tiny_config


def run_config(shapes, output, *opts):
    """A tiny training of `shapes`, given as one's own COCO-format data."""
    file = output / "tiny.yaml"
    cfg = tiny_config()
    cfg.MODEL.SOLO.NUM_CLASSES = 0
    cfg.SOLVER.IMS_PER_BATCH = cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 4
    cfg.SOLVER.MAX_ITER = 4
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 80, 96)
    cfg.INPUT.MIN_SIZE_TEST = 96
    cfg.SEED = 7
    cfg.OUTPUT_DIR = str(output)
    output.mkdir(parents=True, exist_ok=True)
    file.write_text(cfg.dump())
    data = [
        *("--train-json", f"{shapes}/annotations/instances_train.json"),
        *("--train-images", f"{shapes}/train"),
        *("--val-json", f"{shapes}/annotations/instances_val.json"),
        *("--val-images", f"{shapes}/val"),
    ]
    return argument_parser().parse_args(["--config-file", str(file), *data, *map(str, opts)])


def forget_data():
    """Let the names of `run_config`'s data be used for other files."""
    for name in ("custom_train", "custom_val"):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def train(cfg, resume=False):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer
