"""A training that kills itself, as kill -9 would, at a chosen moment.

python -m tests.engine.killed {saving,stepping} ITERATION ARGUMENTS OF train_net.py
"""

import io
import os
import signal
import sys

import torch

from solo_d2.engine import Trainer, argument_parser, setup


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_saving(iteration):
    """Leave half of the checkpoint of that iteration on the disk."""
    save = torch.save

    def save_half(state, file):
        if state["trainer"]["iteration"] != iteration:
            return save(state, file)
        content = io.BytesIO()
        save(state, content)
        file.write(content.getvalue()[: content.tell() // 2])
        file.flush()
        die()

    torch.save = save_half


def main(moment, iteration, *arguments):
    args = argument_parser().parse_args(arguments)
    trainer = Trainer(setup(args))
    trainer.resume_or_load(resume=args.resume)
    if moment == "saving":
        die_while_saving(int(iteration))
    else:  # with gradients, before the step
        trainer.optimizer.register_step_pre_hook(
            lambda *_: die() if trainer.iter == int(iteration) else None
        )
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
