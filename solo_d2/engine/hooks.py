"""Hooks of the trainer: seeds, the best checkpoint, early stopping."""

import logging
import math
from typing import Any

import numpy as np
from detectron2.engine import BestCheckpointer, HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

logger = logging.getLogger("solo_d2")


def seed_step(seed: int, iteration: int, process: int) -> None:
    """Seed Python's, NumPy's and torch's numbers for an iteration in a process."""
    sequence = np.random.SeedSequence([seed, iteration, process])
    seed_all_rng(int(sequence.generate_state(1)[0]))


class SeedSteps(HookBase):
    """Seeds the random numbers of each step by the seed, the iteration and the process.

    So a resumed training has the numbers that it would have had, and no state need be saved, which
    each process would have to do for itself.
    """

    def __init__(self, seed: int):
        """Make the hook.

        Args:
            seed: of the training, not negative.
        """
        self.seed = seed

    def before_step(self) -> None:
        """Seed Python's, NumPy's and torch's numbers."""
        seed_step(self.seed, self.trainer.iter, comm.get_rank())


class ResumableBestCheckpointer(BestCheckpointer):
    """Remembers the best figure over a resume, which Detectron2's own hook forgets."""

    def _best_checking(self) -> None:
        """Save the model if it is the best one; as Detectron2's, but the file knows that it is."""
        value, iteration = self.trainer.storage.latest().get(self._val_metric, (None, None))
        if value is None:
            logger.warning(
                f"{self._val_metric} was not evaluated, so no checkpoint can be the best"
            )
            return
        previous = "none" if self.best_metric is None else f"{self.best_metric:.3f}"
        if math.isfinite(value) and (self.best_metric is None or value > self.best_metric):
            self._update_best(value, iteration)
            self._checkpointer.save(self._file_prefix, iteration=iteration)
            logger.info(f"{self._val_metric} {value:.3f} is the best, before it was {previous}")
        else:
            logger.info(f"{self._val_metric} {value:.3f} is not the best, which is {previous}")

    def state_dict(self) -> dict[str, Any]:
        """The best figure so far and its iteration."""
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]


class EndOfTraining(BaseException):
    """Raised to leave the training loop early; no Exception: Detectron2 reports those as failures.

    The hooks' `after_train` runs, but without the evaluation that stands at the planned end.
    """


class EarlyStopping(HookBase):
    """Ends training when evaluations have not made a better checkpoint for a while.

    Stands behind the hooks that evaluate and keep the best checkpoint, in every process.
    """

    def __init__(self, best: ResumableBestCheckpointer | None, *, period: int, patience: int):
        """Make the hook.

        Args:
            best: knows the best checkpoint; None in all processes but the main one.
            period: iterations from one evaluation to the next.
            patience: evaluations in a row without a better checkpoint after which training ends.
        """
        self.best = best
        self.period = period
        self.patience = patience
        self.stopped = False

    def after_step(self) -> None:
        """After an evaluation decide for all processes, and save the last weights at the end."""
        done = self.trainer.iter + 1
        if done % self.period or done == self.trainer.max_iter:
            return
        self.stopped = any(comm.all_gather(self._is_exhausted()))
        if self.stopped and self.best is not None:
            logger.info(
                f"No better checkpoint in {self.patience} evaluations: training ends after "
                f"{done} iterations"
            )
            self.trainer.checkpointer.save("model_final", iteration=self.trainer.iter)

    def before_step(self) -> None:
        """Leave the loop, now that all hooks have seen the last step."""
        if self.stopped:
            raise EndOfTraining

    def _is_exhausted(self) -> bool:
        if self.best is None:
            return False
        best_iter = -1 if self.best.best_iter is None else self.best.best_iter
        return (self.trainer.iter - best_iter) // self.period >= self.patience
