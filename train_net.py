"""Train or evaluate a SOLO model, in one process or many (docs/distributed.md).

python train_net.py --config-file configs/coco/solov2_R50_1x.yaml --num-gpus 8
python train_net.py --config-file configs/coco/solov2_R50_1x.yaml --eval-only MODEL.WEIGHTS FILE
torchrun --nproc-per-node 8 train_net.py --config-file configs/coco/solov2_R50_1x.yaml
"""

import argparse
import sys
from typing import Any

from solo_d2.utils.allocator import keep_freed_memory
from solo_d2.utils.commands import run_command, share_cores

if __name__ == "__main__":
    share_cores()  # before torch is imported

from solo_d2.engine import Trainer, argument_parser, evaluate, setup  # noqa: E402
from solo_d2.engine.launch import JobError, check_device, launch  # noqa: E402
from solo_d2.utils.files import naming  # noqa: E402


def main(args: argparse.Namespace) -> Any:
    """Run in one process of the job."""
    cfg = setup(args)
    check_device(cfg.MODEL.DEVICE)
    with naming(cfg.OUTPUT_DIR):
        if args.eval_only:
            return evaluate(cfg)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


if __name__ == "__main__":
    args = argument_parser().parse_args()
    if args.eval_only:
        keep_freed_memory()
    sys.exit(run_command("", lambda: launch(main, args), errors=(JobError,), failed=1))
