"""Sums over pixels of masks that are never stored as a whole, forward and backward.

Masks are computed in strips of rows, summed and discarded, and recomputed for the gradient. Besides
the gradients of the maps, this takes the memory of one strip. Gradients of a strip are accumulated
directly into those of the batch.

Shape letters: B images, N instances, P masks, J sums, C channels of a map, H W rows and columns.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from solo_d2.ops.mask_factors import MaskFactor, multiply_factors
from solo_d2.ops.recompute import autocast_settings

# 4-byte values per pixel while the gradient of a strip is computed: for a mask (probability,
# target, products, gradients) and for a map (cast copy, gradient). Measured, including the
# allocator's overhead.
NUMBERS_OF_MASK, NUMBERS_OF_MAP = 16, 6


def bytes_of_masks(factors: Sequence[MaskFactor], num_per_image: Sequence[int]) -> int:
    """Estimate the memory of all masks and their gradients at once."""
    height = factors[0].maps.shape[2]
    return height * sum(_bytes_of_row([f.maps for f in factors], num) for num in num_per_image)


def _bytes_of_row(maps: Sequence[Tensor], num: int) -> int:
    """Estimate the memory of one row of `num` masks of an image."""
    channels = sum(x.shape[1] for x in maps)
    return 4 * maps[0].shape[3] * (NUMBERS_OF_MASK * num + NUMBERS_OF_MAP * channels)


def sum_masks(
    factors: Sequence[MaskFactor],
    num_per_image: Sequence[int],
    targets: Tensor,
    instances: Tensor,
    pixel_sums: Callable[[Tensor, Tensor], Tensor],
    *,
    memory: int,
) -> Tensor:
    """Compare masks with their targets and sum over pixels.

    Gradients flow to all parts of the factors. They equal those of whole masks up to the order of
    summation.

    Args:
        factors: factors of the predicted masks of a batch, ordered by image; P may be 0.
        num_per_image: number of masks of each image, P in total; on the host.
        targets: (N, H, W) bool.
        instances: (P,) int64 in [0, N), the target of each mask.
        pixel_sums: maps masks (p, h, W) and targets (p, h, W) to sums over pixels (p, J).
        memory: memory of a strip in bytes; a strip has at least one row.

    Returns:
        (P, J).
    """
    radius = max(factor.radius for factor in factors)
    plan = _StripSums(pixel_sums, num_per_image, radius, memory)
    inputs = [x for factor in factors for x in factor]
    return cast(Tensor, _SumMasks.apply(plan, targets, instances, *inputs))  # type: ignore[no-untyped-call]


class _Strip(NamedTuple):
    """Rows `start` to `stop` of the masks of an image, and the rows of the maps they depend on."""

    image: int
    samples: slice
    start: int
    stop: int
    needed: slice


@dataclass(frozen=True)
class _StripSums:
    """Computation of the strips; holds no tensors, which would outlive the backward pass.

    "Inputs" are maps, kernels and bias (or None) of each factor in turn.
    """

    pixel_sums: Callable[[Tensor, Tensor], Tensor]
    num_per_image: Sequence[int]
    radius: int
    memory: int

    def strips(self, inputs: Sequence[Any]) -> Iterator[_Strip]:
        """Yield the strips image by image; one empty strip for an image without masks."""
        maps, first = inputs[::3], 0
        height = maps[0].shape[2]
        for image, num in enumerate(self.num_per_image):
            samples = slice(first, first + num)
            rows = max(1, self.memory // max(1, _bytes_of_row(maps, num)))
            for start in range(0, height if num else 1, rows):
                stop = min(start + rows, height) if num else 0
                needed = slice(max(0, start - self.radius), stop + self.radius)
                yield _Strip(image, samples, start, stop, needed)
            first += num

    def cut(self, inputs: Sequence[Any], strip: _Strip) -> list[Any]:
        """Return views of the parts of inputs, or of their gradients, that a strip needs."""
        of_map = (strip.image, slice(None), strip.needed)
        return [
            x if x is None else x[of_map if i % 3 == 0 else strip.samples]
            for i, x in enumerate(inputs)
        ]

    def sums(
        self, strip: _Strip, pieces: Sequence[Any], targets: Tensor, instances: Tensor
    ) -> Tensor:
        """Compute the sums (p, J) over a strip from its parts of the inputs."""
        factors = [MaskFactor(*pieces[i : i + 3]) for i in range(0, len(pieces), 3)]
        above = strip.start - strip.needed.start
        masks = multiply_factors(factors)[:, above : above + strip.stop - strip.start]
        rows = targets[:, strip.start : strip.stop]
        return self.pixel_sums(masks, rows[instances[strip.samples]])


class _SumMasks(torch.autograd.Function):
    """Sums over strips, which the backward pass recomputes."""

    @staticmethod
    def forward(
        ctx: Any, plan: _StripSums, targets: Tensor, instances: Tensor, *inputs: Tensor | None
    ) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(targets, instances, *inputs)
        # The backward pass runs outside the caller's autocast but must compute the same masks. The
        # cache of autocast would keep a copy of every strip.
        ctx.autocast = autocast_settings(targets.device.type)
        sums: list[Tensor] = []
        with torch.autocast(**ctx.autocast):
            for strip in plan.strips(inputs):
                part = plan.sums(strip, plan.cut(inputs, strip), targets, instances)
                if strip.image == len(sums):
                    sums.append(part)
                else:
                    sums[-1] += part
        return torch.cat(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        plan, (targets, instances, *inputs) = ctx.plan, ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        grads = [
            torch.zeros_like(x) if want else None for x, want in zip(inputs, wanted, strict=True)
        ]
        for strip in plan.strips(inputs):
            pieces = [
                x.detach().requires_grad_() if want else x
                for x, want in zip(plan.cut(inputs, strip), wanted, strict=True)
            ]
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                sums = plan.sums(strip, pieces, targets, instances)
            leaves = [x for x, want in zip(pieces, wanted, strict=True) if want]
            parts = torch.autograd.grad(sums, leaves, grad_sums[strip.samples])
            places = [x for x in plan.cut(grads, strip) if x is not None]
            for place, part in zip(places, parts, strict=True):
                place += part
        return None, None, None, *grads
