#!/usr/bin/env python3
r"""Train or evaluate a SOLO model of a lazy config (docs/training.md).

    python tools/lazyconfig_train_net.py --config-file configs/lazy/solov2_R50_1x.py --num-gpus 8
    python tools/lazyconfig_train_net.py --config-file configs/lazy/solov2_R50_1x.py \
        --eval-only train.init_checkpoint=FILE

What comes last changes the config: path.of.key=value.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectron2.config import LazyConfig, instantiate  # noqa: E402
from detectron2.engine import default_argument_parser, default_setup  # noqa: E402

from solo_d2.engine.lazy import LazyTrainer, evaluate_lazy, trainer_config  # noqa: E402
from solo_d2.errors import ConfigError, DatasetError  # noqa: E402
from solo_d2.launch import JobError, add_launch_arguments, check_device, launch  # noqa: E402
from solo_d2.modeling.checkpointer import SOLOCheckpointer  # noqa: E402


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = default_argument_parser()
    add_launch_arguments(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> Any:
    """Run in one process of the job."""
    if not Path(args.config_file).is_file():
        raise ConfigError(f"--config-file {args.config_file or '(none)'} is not there")
    lazy = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    cfg = trainer_config(lazy)
    check_device(cfg.MODEL.DEVICE)
    default_setup(lazy, args)
    if args.eval_only:
        model = instantiate(lazy.model).to(cfg.MODEL.DEVICE)
        SOLOCheckpointer(model, save_dir=cfg.OUTPUT_DIR, whole=True).load(cfg.MODEL.WEIGHTS)
        return evaluate_lazy(lazy, cfg, model)
    trainer = LazyTrainer(lazy)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    try:
        launch(main, parse_args())
    except (ConfigError, DatasetError, JobError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
