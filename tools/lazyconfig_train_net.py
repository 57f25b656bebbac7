#!/usr/bin/env python3
r"""Train or evaluate a SOLO model of a lazy config (docs/training.md).

    python tools/lazyconfig_train_net.py --config-file configs/lazy/solov2_R50_1x.py --num-gpus 8
    python tools/lazyconfig_train_net.py --config-file configs/lazy/solov2_R50_1x.py \
        --eval-only train.init_checkpoint=FILE

Overrides come last: path.of.key=value. A lazy config is a Python program: do not load one from an
untrusted source.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from solo_d2.utils.commands import share_cores

    share_cores()  # before torch is imported

from detectron2.config import LazyConfig  # noqa: E402
from detectron2.engine import default_argument_parser, default_setup  # noqa: E402
from detectron2.utils import comm  # noqa: E402
from detectron2.utils.logger import setup_logger  # noqa: E402

from solo_d2.engine.launch import JobError, add_launch_arguments, check_device, launch  # noqa: E402
from solo_d2.engine.lazy import (  # noqa: E402
    LazyTrainer,
    check_lazy_test_data,
    evaluate_weights,
    save_lazy_config,
    trainer_config,
)
from solo_d2.engine.reservation import holds_training, reserve  # noqa: E402
from solo_d2.engine.setup import choose_weights, log_to  # noqa: E402
from solo_d2.modeling.building import refusing  # noqa: E402
from solo_d2.utils.commands import run_command  # noqa: E402
from solo_d2.utils.errors import ConfigError  # noqa: E402
from solo_d2.utils.files import naming  # noqa: E402


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = default_argument_parser()
    add_launch_arguments(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> Any:
    """Run one process of the job."""
    setup_logger(distributed_rank=comm.get_rank(), name="solo_d2")
    if not Path(args.config_file).is_file():
        raise ConfigError(f"--config-file {args.config_file or '(none)'} does not exist")
    with refusing(f"The lazy config {args.config_file}, changed by {args.opts},"):
        lazy = LazyConfig.load(args.config_file)
        parts = set(lazy)
        lazy = LazyConfig.apply_overrides(lazy, args.opts)
    if added := sorted(set(lazy) - parts):
        raise ConfigError(
            f"{', '.join(added)}: no part of the lazy config, which has {sorted(parts)}"
        )
    cfg = trainer_config(lazy)
    cfg.defrost()
    choose_weights(cfg, args)
    cfg.freeze()
    check_device(cfg.MODEL.DEVICE)
    check_lazy_test_data(lazy)
    if not args.eval_only:
        reserve(cfg.OUTPUT_DIR)
    log_to(cfg.OUTPUT_DIR)
    without_folder = copy.deepcopy(lazy)
    without_folder.train.output_dir = None  # it would write config.yaml at once
    default_setup(without_folder, args)
    with naming(cfg.OUTPUT_DIR):
        if args.eval_only:
            if not holds_training(cfg.OUTPUT_DIR):
                save_lazy_config(lazy, cfg)
            return evaluate_weights(lazy, cfg)
        trainer = LazyTrainer(lazy)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


if __name__ == "__main__":
    args = parse_args()
    sys.exit(run_command("", lambda: launch(main, args), errors=(JobError,), failed=1))
