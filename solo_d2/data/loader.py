"""The training loader: Detectron2's data sets, samplers and mappers, resumable to the exact sample.

Two things differ from Detectron2's own loader. Batches are put together from indices before any
image is read, so that a resumed training can skip what was seen without reading it. And the random
augmentation of a sample depends on the seed and on its place in the stream alone, not on the number
of workers or on which worker had it.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.build import _train_loader_from_config, trivial_batch_collator
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from solo_d2.errors import ConfigError


def build_train_loader(cfg: CfgNode, mapper: Callable[[dict[str, Any]], Any]) -> DataLoader[Any]:
    """Make the infinite training loader of a config.

    Args:
        cfg: the config; SEED fixes order and augmentation (-1 too is a seed here).
        mapper: makes a training sample of a data set dict.

    Returns:
        Batches of SOLVER.IMS_PER_BATCH / processes samples, as lists. Set
        `loader.batch_sampler.start_batch` before the first batch is taken to go on from there.
    """
    parts = _train_loader_from_config(cfg, mapper=mapper)
    dataset = parts["dataset"]
    processes = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % processes:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, but must be a multiple of the "
            f"{processes} processes"
        )
    groups = [0] * len(dataset)
    if parts["aspect_ratio_grouping"]:
        groups = [int(d["width"] > d["height"]) for d in dataset]
    batch_sampler = GroupedBatchSampler(
        parts["sampler"], groups, cfg.SOLVER.IMS_PER_BATCH // processes
    )
    return DataLoader(
        SeededDataset(DatasetFromList(dataset, copy=False), mapper, seed=cfg.SEED),
        batch_sampler=batch_sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        pin_memory=False,
    )


class GroupedBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of indices in which all images are wider than high, or none is.

    Attributes:
        start_batch: batches of the stream to leave out, read when iteration starts.
    """

    def __init__(self, sampler: Iterable[int], groups: Sequence[int], batch_size: int):
        """Wrap a sampler.

        Args:
            sampler: infinite stream of data set indices of this process, the same at each start.
            groups: group of each data set index.
            batch_size: indices in a batch.
        """
        self.sampler = sampler
        self.groups = groups
        self.batch_size = batch_size
        self.start_batch = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield lists of (place in the stream of all processes, data set index)."""
        return itertools.islice(self._batches(), self.start_batch, None)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        places = itertools.count(comm.get_rank(), comm.get_world_size())
        buckets: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for place, index in zip(places, self.sampler, strict=False):
            bucket = buckets[self.groups[index]]
            bucket.append((place, index))
            if len(bucket) == self.batch_size:
                yield bucket.copy()
                bucket.clear()


class SeededDataset(Dataset[Any]):
    """Maps data set dicts with random numbers that depend on seed and place alone."""

    def __init__(
        self, dataset: Sequence[dict[str, Any]], mapper: Callable[[dict[str, Any]], Any], seed: int
    ):
        self.dataset = dataset
        self.mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place_and_index: tuple[int, int]) -> Any:
        place, index = place_and_index
        state = np.random.get_state(), random.getstate(), torch.get_rng_state()
        seed = np.random.SeedSequence([self.seed % 2**32, place]).generate_state(1)[0]
        np.random.seed(seed)
        random.seed(int(seed))
        torch.manual_seed(int(seed))
        try:
            return self.mapper(self.dataset[index])
        finally:
            np.random.set_state(state[0])
            random.setstate(state[1])
            torch.set_rng_state(state[2])
