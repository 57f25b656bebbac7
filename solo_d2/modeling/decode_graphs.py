"""Decoding as CUDA graphs: one launch instead of a hundred (`TEST.SPEED.COMPILE` "cuda-graphs")."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from solo_d2.inference import ImageSizes, MaskDecoder
from solo_d2.structures import HeadOutputs, Predictions, map_tensors

logger = logging.getLogger("solo_d2")

# Input sizes that have a graph of their own. Each keeps the head's outputs, the masks of all lanes
# and the results: about 300 MiB for SOLOv2 at 800x1216.
MOST_GRAPHS = 8


def _tensors(outputs: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(lambda x: found.append(x) or x, outputs)  # type: ignore[func-returns-value]
    return found


def _is_plain(outputs: Any) -> bool:
    """Whether `_tensors` finds all tensors."""
    if isinstance(outputs, list):
        return all(_is_plain(part) for part in outputs)
    if is_dataclass(outputs):
        return all(_is_plain(getattr(outputs, field.name)) for field in fields(outputs))
    if isinstance(outputs, tuple):
        return all(isinstance(part, (int, float, str)) for part in outputs)
    return outputs is None or isinstance(outputs, (Tensor, int, float, str))


@dataclass(frozen=True)
class _Graph:
    """A recorded call: what it reads and what it writes."""

    graph: Any
    inputs: list[Tensor]
    results: list[Predictions]
    counts: Tensor


class DecodeGraphs:
    """Runs `MaskDecoder.decode_lanes`, from the second call of a size on as a CUDA graph.

    A size is that of the padded batch, of its images and of their outputs. The first `MOST_GRAPHS`
    sizes that come again get a graph, further ones run without. So does every call once a
    recording fails, for example because the NMS waits for the device; a warning says why.
    """

    def __init__(self) -> None:
        self._graphs: dict[Any, _Graph] = {}
        self._seen: set[Any] = set()
        self._pool: Any = None
        self._fault = ""

    def __reduce__(self) -> tuple[type["DecodeGraphs"], tuple[()]]:
        return DecodeGraphs, ()  # copies record their own

    def __call__(
        self, decoder: MaskDecoder, outputs: HeadOutputs, sizes: Sequence[ImageSizes]
    ) -> tuple[list[Predictions], Tensor]:
        """`decoder.decode_lanes(outputs, sizes)`; the next call overwrites what is returned."""
        if self._fault or not _is_plain(outputs):
            return decoder.decode_lanes(outputs, sizes)
        tensors = _tensors(outputs)
        key = (
            tuple(x for x in vars(decoder).values() if isinstance(x, (int, float, str))),
            tuple(sizes),
            tuple((x.shape, x.dtype, x.device) for x in tensors),
        )
        recorded = self._graphs.get(key)
        if recorded is None and len(self._graphs) < MOST_GRAPHS:
            if key in self._seen:
                recorded = self._record(decoder, outputs, sizes)
            self._seen.add(key)
        if recorded is None:
            return decoder.decode_lanes(outputs, sizes)
        self._graphs[key] = recorded
        torch._foreach_copy_(recorded.inputs, tensors)
        recorded.graph.replay()
        return recorded.results, recorded.counts

    def _record(
        self, decoder: MaskDecoder, outputs: HeadOutputs, sizes: Sequence[ImageSizes]
    ) -> _Graph | None:
        """Record a call; kernels were compiled in the first one."""
        # All graphs use the same memory for what they don't keep: one runs after the other.
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        with torch.inference_mode(False), torch.no_grad():
            inputs = map_tensors(torch.clone, outputs)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.device(decoder.cell_levels.device):
                    with torch.cuda.graph(graph, pool=self._pool):
                        results, counts = decoder.decode_lanes(inputs, sizes)
            except RuntimeError as error:
                self._fault = str(error).splitlines()[0]
                logger.warning(f"Decoding runs without CUDA graphs: {self._fault}")
                return None
        return _Graph(graph, _tensors(inputs), results, counts)
