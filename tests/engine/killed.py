"""A training that kills itself at a chosen moment."""

import io
import os
import signal

import torch

from solo_d2.engine import Trainer, setup


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


def train(moment, iteration, args, threads):
    """Train in a process of its own; dies while "saving" or "stepping" in an iteration."""
    torch.set_num_threads(threads)
    trainer = Trainer(setup(args))
    trainer.resume_or_load(resume=args.resume)
    if moment == "saving":
        die_while_saving(iteration)
    else:  # with gradients, before the step
        trainer.optimizer.register_step_pre_hook(
            lambda *_: die() if trainer.iter == iteration else None
        )
    trainer.train()
