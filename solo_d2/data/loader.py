"""The training loader for Detectron2's data sets, samplers and mappers, resumable at any sample.

Batches are formed from indices before images are read, so a resumed training skips samples without
reading them. The augmentation of a sample, and the image that replaces an unreadable one (see
`unreadable`), depend only on the seed and on the place of the sample in the stream, not on the
workers.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import TrainingSampler
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from solo_d2.data.cropped_masks import CroppedMasks
from solo_d2.data.unreadable import UNREADABLE, too_many_unreadable
from solo_d2.utils.errors import ConfigError, DatasetError, UnreadableImageError


def make_train_loader(
    dataset: Sequence[dict[str, Any]],
    mapper: Callable[[dict[str, Any]], Any],
    *,
    total_batch_size: int,
    seed: int,
    max_unreadable: int,
    sampler: Iterable[int] | None = None,
    num_workers: int = 0,
    aspect_ratio_grouping: bool = True,
    pin_memory: bool | None = None,
) -> DataLoader[Any]:
    """Build the infinite training loader of a data set; see `build_train_loader` of the engine.

    Args:
        dataset: dataset dicts.
        mapper: maps a dataset dict to a training sample.
        total_batch_size: batch size over all processes.
        seed: seed of order and augmentation.
        max_unreadable: maximum number of unreadable images to try for one sample.
        sampler: infinite stream of indices for this process; None for all images in random order.
        num_workers: number of workers per process.
        aspect_ratio_grouping: whether to keep wide and other images in separate batches.
        pin_memory: whether to copy samples to pinned memory for asynchronous copies to the GPU;
            None if a GPU is available.

    Raises:
        ConfigError: the batch size is not a multiple of the number of processes.
    """
    processes = comm.get_world_size()
    if total_batch_size % processes:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {total_batch_size}, but must be a multiple of the "
            f"{processes} processes"
        )
    pin_memory = torch.cuda.is_available() and pin_memory is not False
    if sampler is None:
        sampler = TrainingSampler(len(dataset), seed=seed)
    groups = [0] * len(dataset)
    if aspect_ratio_grouping:
        try:
            groups = [int(d["width"] > d["height"]) for d in dataset]
        except KeyError as error:
            raise DatasetError(
                f"An image of DATASETS.TRAIN has no {error}: add it, or set "
                "DATALOADER.ASPECT_RATIO_GROUPING False"
            ) from error
    return TrainLoader(
        SeededDataset(dataset, mapper, seed=seed, groups=groups, max_unreadable=max_unreadable),
        batch_sampler=GroupedBatchSampler(sampler, groups, total_batch_size // processes),
        num_workers=num_workers,
        collate_fn=PinnableBatch if pin_memory else trivial_batch_collator,
        pin_memory=pin_memory,
    )


class PinnableBatch:
    """A batch for torch's pinned memory, which does not support Instances by itself."""

    def __init__(self, samples: list[Any]):
        """Collate samples."""
        self.samples = samples

    def pin_memory(self) -> list[Any]:
        """Return the samples with images, boxes, classes and masks in pinned memory."""
        return [_pinned(sample) for sample in self.samples]


def _pinned(value: Any) -> Any:
    if isinstance(value, Tensor | CroppedMasks):
        return value.pin_memory()
    if isinstance(value, dict):
        return {key: _pinned(part) for key, part in value.items()}
    if isinstance(value, Boxes | BitMasks):
        return type(value)(value.tensor.pin_memory())
    if isinstance(value, Instances):
        fields = {name: _pinned(field) for name, field in value.get_fields().items()}
        return Instances(value.image_size, **fields)
    return value


class TrainLoader(DataLoader[Any]):
    """A loader that raises the DatasetErrors of its data set without the worker's traceback."""

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:  # type: ignore[override]
        for batch in super().__iter__():
            for sample in batch:
                if isinstance(sample, DatasetError):
                    raise sample
            yield batch


class GroupedBatchSampler(Sampler[list[tuple[int, int]]]):
    """Form batches of indices of one group, such as the images that are wider than high.

    Attributes:
        start_batch: number of batches to skip, read when iteration starts.
    """

    def __init__(self, sampler: Iterable[int], groups: Sequence[int], batch_size: int):
        """Wrap an infinite, reproducible sampler; `groups` has the group of each dataset dict."""
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
    """Map dataset dicts with random numbers that depend only on the seed and the place.

    An unreadable image is replaced by another one, of the same group if possible; the sample then
    has the key `UNREADABLE`.
    """

    def __init__(
        self,
        dataset: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], Any],
        seed: int,
        *,
        groups: Sequence[int],
        max_unreadable: int,
    ):
        """Wrap a data set; see `make_train_loader`. `groups` has a number for each dict."""
        self.dataset = dataset
        self.mapper = mapper
        self.seed = seed % 2**32
        self.groups: NDArray[Any] = np.asarray(groups)
        self.max_unreadable = max_unreadable

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place_and_index: tuple[int, int]) -> Any:
        """Map the dataset dict of an index for a place in the stream.

        A DatasetError (too many unreadable images, or another problem) is returned, because torch
        would wrap an error that is raised in a worker.
        """
        place, index = place_and_index
        unreadable: dict[str, str] = {}
        for attempt, candidate in enumerate(self._candidates(place, index)):
            try:
                sample = self._map(candidate, place, attempt)
            except UnreadableImageError as error:
                unreadable[error.file] = error.reason
                if len(unreadable) > self.max_unreadable:
                    break
            except DatasetError as error:
                return error
            else:
                if unreadable:
                    sample[UNREADABLE] = unreadable | sample.get(UNREADABLE, {})
                return sample
        return too_many_unreadable(unreadable, self.max_unreadable)

    def _candidates(self, place: int, index: int) -> Iterator[int]:
        """Yield the index, then all others in random order, those of its group first."""
        yield index
        generator = np.random.default_rng([self.seed, place])
        same_group = self.groups == self.groups[index]
        others = np.arange(len(self.groups)) != index
        for group in (same_group & others, ~same_group):
            yield from generator.permutation(np.flatnonzero(group)).tolist()

    def _map(self, index: int, place: int, attempt: int) -> Any:
        state = np.random.get_state(), random.getstate(), torch.get_rng_state()
        seed = np.random.SeedSequence([self.seed, place, attempt]).generate_state(1)[0]
        np.random.seed(seed)
        random.seed(int(seed))
        torch.manual_seed(int(seed))
        try:
            return self.mapper(self.dataset[index])
        finally:
            np.random.set_state(state[0])
            random.setstate(state[1])
            torch.set_rng_state(state[2])
