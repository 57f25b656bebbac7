"""Train or evaluate a SOLO model.

python train_net.py --config-file configs/coco/solov2_R50_1x.yaml --num-gpus 8
python train_net.py --config-file configs/coco/solov2_R50_1x.yaml --eval-only MODEL.WEIGHTS FILE
"""

import argparse
import sys
from typing import Any

from detectron2.engine import launch

from solo_d2.engine import Trainer, argument_parser, evaluate, setup
from solo_d2.errors import ConfigError, DatasetError


def main(args: argparse.Namespace) -> Any:
    """Run in one process of the job."""
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = argument_parser().parse_args()
    try:
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except (ConfigError, DatasetError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
