"""Build the config of a run from the command line: data sets, schedule scaling, seed."""

import argparse
import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from solo_d2.checkpoint.checkpointer import last_checkpoint, require_no_earlier
from solo_d2.checkpoint.saved_classes import adopt_saved_classes
from solo_d2.checkpoint.saved_config import differences, warn_of_other_settings
from solo_d2.config import add_import_argument, find_config_file, load_config, override
from solo_d2.config.extensions import import_extension
from solo_d2.config.rules import require
from solo_d2.data import check_datasets, register_datasets_of_config, resolve_num_classes
from solo_d2.data.arguments import add_dataset_arguments, apply_dataset_arguments
from solo_d2.data.catalog import require_model_classes, training_categories
from solo_d2.engine.checks import check_run_config
from solo_d2.engine.launch import add_launch_arguments
from solo_d2.engine.reservation import holds_training, reserve
from solo_d2.evaluation.check import check_test_data
from solo_d2.modeling.unused_keys import warn_of_unused_keys
from solo_d2.utils.commands import shorten_log_errors
from solo_d2.utils.errors import ConfigError, listed
from solo_d2.utils.files import save_text

logger = logging.getLogger("solo_d2")

# Keys whose changes are not logged when a training is resumed: MODEL.WEIGHTS is not read then, and
# the classes are compared with those of the checkpoint.
_USUAL_CHANGES = ("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.CLASSES", "SOLVER.MAX_ITER")


def argument_parser() -> argparse.ArgumentParser:
    """Return Detectron2's parser with arguments for processes and data in COCO format."""
    parser = default_argument_parser()
    add_launch_arguments(parser)
    add_import_argument(parser)
    add_dataset_arguments(parser)
    return parser


def setup(args: argparse.Namespace) -> CfgNode:
    """Build the final config of a run: file, data set arguments, overrides, scaling, seed, classes.

    Returns:
        The frozen config. Evaluations write it to OUTPUT_DIR/config.yaml unless the folder belongs
        to a training; for trainings, `Trainer.train` does.

    Raises:
        ConfigError: a key has an invalid value, or another process trains in OUTPUT_DIR.
        DatasetError: a data set cannot be found or read.
    """
    args = argparse.Namespace(**vars(args))  # Detectron2 prints the full name of the config file
    args.config_file = find_config_file(args.config_file)
    rank = comm.get_rank()
    setup_logger(distributed_rank=rank, name="solo_d2")
    for name in getattr(args, "imports", ()):  # processes that were spawned import them again
        import_extension(name)
    cfg = load_config(args.config_file)
    apply_dataset_arguments(cfg, args)
    override(cfg, args.opts)
    check_run_config(cfg, training=not args.eval_only)
    choose_weights(cfg, args)
    register_datasets_of_config(cfg)
    used = tuple(cfg.DATASETS.TEST) if args.eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    _require_test_data(cfg, args)
    check_datasets(used)
    if args.eval_only:
        adopt_saved_classes(cfg, args.opts)
        require_model_classes(cfg, used)
    resolve_num_classes(cfg, used)
    if not args.eval_only:
        _set_classes(cfg, args.opts)
    check_test_data(cfg, needs_metrics=not args.eval_only)
    # OUTPUT_DIR is created only now, so that a run that is refused leaves nothing behind.
    if not args.eval_only:
        reserve(cfg.OUTPUT_DIR)
    log_to(cfg.OUTPUT_DIR)
    if not torch.cuda.is_available() and cfg.MODEL.DEVICE.startswith("cuda"):
        logger.warning(f"No GPU is available: MODEL.DEVICE changes from {cfg.MODEL.DEVICE} to cpu")
        cfg.MODEL.DEVICE = "cpu"
    warn_of_unused_keys(cfg, args.config_file, args.opts)
    warn_of_other_settings(cfg)
    scale_schedule(cfg, given=args.opts[::2])
    resolve_seed(cfg, resume=args.resume)
    if not args.eval_only:
        _log_doubtful_values(cfg)
        if args.resume:
            _log_changes(cfg)
    cfg.freeze()
    _begin(cfg, args)
    return cfg


def choose_weights(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Set MODEL.WEIGHTS to the last checkpoint with --eval-only and --resume, as Detectron2 does.

    Raises:
        ConfigError: MODEL.WEIGHTS, or the last checkpoint that --resume needs, does not exist.
    """
    last = last_checkpoint(cfg.OUTPUT_DIR) if args.resume else ""
    if last and args.eval_only:
        logger.info(f"--resume: the last checkpoint {last} is evaluated")
        cfg.MODEL.WEIGHTS = last
    elif args.resume and not last:
        require_no_earlier(cfg.OUTPUT_DIR)
    if not last and args.eval_only and args.resume and not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            f"--resume: OUTPUT_DIR {cfg.OUTPUT_DIR} has no checkpoint to evaluate; set OUTPUT_DIR "
            "to the folder of a training, or MODEL.WEIGHTS"
        )
    weights = cfg.MODEL.WEIGHTS
    exists = "://" in weights or Path(weights.partition("?")[0]).is_file()
    if weights and not last and not exists:
        raise ConfigError(f"MODEL.WEIGHTS is {weights}, which is not a file")


def _set_classes(cfg: CfgNode, overrides: Sequence[str]) -> None:
    """Set MODEL.CLASSES to the classes of the training data.

    Others in the config, which may come from an earlier training, are logged. Raises ConfigError if
    they are among the overrides of the command line.
    """
    given = [dict(category) for category in cfg.MODEL.CLASSES]
    cfg.MODEL.CLASSES = training_categories(cfg)
    if not given or given == cfg.MODEL.CLASSES:
        return
    differs = f"MODEL.CLASSES has other classes than the training data set {cfg.DATASETS.TRAIN[0]}"
    if "MODEL.CLASSES" in overrides[::2]:
        raise ConfigError(f"{differs}, whose classes are used: remove the key")
    logger.warning(f"{differs}: those of the data set are used")


def _require_test_data(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Raise a ConfigError if DATASETS.TEST is empty but evaluations are required."""
    if cfg.DATASETS.TEST:
        return
    if args.eval_only:
        raise ConfigError("DATASETS.TEST is empty: pass data to evaluate on with --val-json")
    patience = cfg.SOLVER.EARLY_STOPPING_PATIENCE
    allowed = "0 without data to evaluate on: set --val-json or DATASETS.TEST"
    require(patience == 0, "SOLVER.EARLY_STOPPING_PATIENCE", patience, allowed)


def _log_doubtful_values(cfg: CfgNode) -> None:
    """Log valid values that have no effect, or that are probably a mistake."""
    solver, period = cfg.SOLVER, cfg.TEST.EVAL_PERIOD
    if solver.WARMUP_ITERS > solver.MAX_ITER:
        logger.warning(
            f"SOLVER.WARMUP_ITERS is {solver.WARMUP_ITERS}, but SOLVER.MAX_ITER is "
            f"{solver.MAX_ITER}: training ends before the learning rate reaches BASE_LR"
        )
    if 0 < solver.MAX_ITER <= solver.EARLY_STOPPING_PATIENCE * period:
        logger.warning(
            f"SOLVER.EARLY_STOPPING_PATIENCE {solver.EARLY_STOPPING_PATIENCE} has no effect: with "
            f"TEST.EVAL_PERIOD {period}, training ends at SOLVER.MAX_ITER {solver.MAX_ITER} first"
        )
    trained, tested = (_sources(cfg.DATASETS[part]) for part in ("TRAIN", "TEST"))
    if shared := sorted(trained & tested):
        logger.warning(
            f"DATASETS.TEST contains data of DATASETS.TRAIN, {listed(shared)}: its metrics do not "
            "say how well the model generalises"
        )
    if 0 < max(cfg.MODEL.PIXEL_MEAN) <= 1:
        logger.warning(
            f"MODEL.PIXEL_MEAN {cfg.MODEL.PIXEL_MEAN} is for images in [0, 1], but they are in "
            "[0, 255]: multiply it and MODEL.PIXEL_STD by 255"
        )
    if cfg.TEST.TILES.SIZE:
        logger.info("TEST.TILES has no effect during training: only --eval-only uses tiles")


def _sources(names: Iterable[str]) -> set[str]:
    """Return the annotation files of data sets, or their names if they have none."""
    return {str(MetadataCatalog.get(name).get("json_file") or name) for name in names}


def _log_changes(cfg: CfgNode) -> None:
    """Log the keys that differ from OUTPUT_DIR/config.yaml, which an earlier run has written."""
    saved = Path(cfg.OUTPUT_DIR) / "config.yaml"
    if not saved.is_file():
        return
    try:
        found = differences(load_config(str(saved)), cfg)
    except ConfigError as error:
        logger.warning(f"The earlier config cannot be compared: {error}")
        return
    changes = [text for key, text in found.items() if key not in _USUAL_CHANGES]
    if changes:
        logger.warning(f"Keys that differ from those in {saved}: {listed(changes)}")


def log_to(folder: str) -> None:
    """Write logs to FOLDER/log.txt too."""
    for name in ("solo_d2", "detectron2", "fvcore"):
        setup_logger(folder, comm.get_rank(), name=name, configure_stdout=False)
    shorten_log_errors()


def _begin(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Run Detectron2's `default_setup`, without its OUTPUT_DIR/config.yaml."""
    without_folder = cfg.clone()
    without_folder.defrost()
    without_folder.OUTPUT_DIR = None
    default_setup(without_folder, args)
    logger.info(f"Running with full config:\n{_dump(cfg)}")
    # An evaluation keeps the config of a training: --resume reads the seed from it.
    if args.eval_only and not holds_training(cfg.OUTPUT_DIR):
        save_config(cfg)


def save_config(cfg: CfgNode) -> None:
    """Write OUTPUT_DIR/config.yaml, atomically, in the main process."""
    if comm.is_main_process():
        save_text(Path(cfg.OUTPUT_DIR) / "config.yaml", _dump(cfg))


def _dump(cfg: CfgNode) -> str:
    text: str = cfg.dump(default_flow_style=None, width=100)  # lists on one line
    return text


def scale_schedule(cfg: CfgNode, given: Collection[str] = ()) -> None:
    """Scale learning rate and schedule from SOLVER.REFERENCE_IMS_PER_BATCH to IMS_PER_BATCH.

    The linear rule of arXiv:1706.02677: twice the batch, twice the learning rate, half the
    iterations. Sets the reference to the batch size, so that a saved config is not scaled again.

    Args:
        cfg: the config, changed in place; not changed if the reference is 0.
        given: keys set on the command line, which are not scaled.
    """
    solver = cfg.SOLVER
    reference, batch = solver.REFERENCE_IMS_PER_BATCH, solver.IMS_PER_BATCH
    if reference == 0 or reference == batch:
        return
    ratio = batch / reference

    def period(iterations: int) -> int:
        return iterations and max(1, round(iterations / ratio))  # 0 stays 0

    scaled = {
        "SOLVER.BASE_LR": solver.BASE_LR * ratio,
        "SOLVER.MAX_ITER": period(solver.MAX_ITER),
        "SOLVER.STEPS": tuple(round(step / ratio) for step in solver.STEPS),
        "SOLVER.WARMUP_ITERS": round(solver.WARMUP_ITERS / ratio),
        "SOLVER.CHECKPOINT_PERIOD": period(solver.CHECKPOINT_PERIOD),
        "TEST.EVAL_PERIOD": period(cfg.TEST.EVAL_PERIOD),
    }
    changes, kept = [], []
    for key, new in scaled.items():
        section, name = key.split(".")
        old = cfg[section][name]
        if key in given:
            kept.append(f"{key} {old}")
        elif new != old:
            cfg[section][name] = new
            changes.append(f"{key} {old} -> {new}")
    solver.REFERENCE_IMS_PER_BATCH = batch
    logger.warning(
        f"SOLVER.IMS_PER_BATCH is {batch}, but the schedule is for {reference}. Scaled: "
        f"{', '.join(changes) or 'nothing'}. Set on the command line and not scaled: "
        f"{', '.join(kept) or 'nothing'}. SOLVER.REFERENCE_IMS_PER_BATCH 0 disables scaling."
    )


def resolve_seed(cfg: CfgNode, *, resume: bool) -> None:
    """Replace a SEED of -1 by that of OUTPUT_DIR/config.yaml with `resume`, or a random one."""
    if cfg.SEED >= 0:
        return
    saved = Path(cfg.OUTPUT_DIR) / "config.yaml"
    if resume and saved.is_file():
        cfg.SEED = load_config(str(saved)).SEED
    if cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed()
        logger.info(f"SEED {cfg.SEED} was drawn at random; set it to repeat this run")
