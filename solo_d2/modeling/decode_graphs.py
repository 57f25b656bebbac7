"""Decoding with CUDA graphs: one launch instead of a hundred (TEST.SPEED.COMPILE "cuda-graphs")."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from solo_d2.inference import ImageSizes, MaskDecoder
from solo_d2.structures import HeadOutputs, Predictions, map_tensors

logger = logging.getLogger("solo_d2")

# Maximum number of input sizes with a graph. Each graph holds the head's outputs, the masks of all
# lanes and the results: about 300 MiB for SOLOv2 at 800x1216.
MOST_GRAPHS = 8


def _tensors(outputs: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(lambda x: found.append(x) or x, outputs)  # type: ignore[func-returns-value]
    return found


def _is_plain(outputs: Any) -> bool:
    """Return whether `_tensors` finds all tensors of the outputs."""
    if isinstance(outputs, list):
        return all(_is_plain(part) for part in outputs)
    if is_dataclass(outputs):
        return all(_is_plain(getattr(outputs, field.name)) for field in fields(outputs))
    if isinstance(outputs, tuple):
        return all(isinstance(part, (int, float, str)) for part in outputs)
    return outputs is None or isinstance(outputs, (Tensor, int, float, str))


@dataclass(frozen=True)
class _Graph:
    """A recorded call, with its inputs and results."""

    graph: Any
    inputs: list[Tensor]
    results: list[Predictions]
    counts: Tensor


class DecodeGraphs:
    """Run `MaskDecoder.decode_lanes` as a CUDA graph, from the second call with a size on.

    A size comprises the padded batch, its images and their outputs. The first `MOST_GRAPHS` sizes
    that recur get a graph; others run without. If a recording fails, for example because the NMS
    synchronizes, no more graphs are used, and a warning gives the reason.
    """

    def __init__(self) -> None:
        self._graphs: dict[Any, _Graph] = {}
        self._seen: set[Any] = set()
        self._pool: Any = None
        self._fault = ""

    def __reduce__(self) -> tuple[type["DecodeGraphs"], tuple[()]]:
        return DecodeGraphs, ()  # copies record their own graphs

    def __call__(
        self, decoder: MaskDecoder, outputs: HeadOutputs, sizes: Sequence[ImageSizes]
    ) -> tuple[list[Predictions], Tensor]:
        """Return `decoder.decode_lanes(outputs, sizes)`, overwritten by the next call."""
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
        """Record a call; its kernels were compiled in the first call."""
        # Graphs run one after another, so they share temporary memory.
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
