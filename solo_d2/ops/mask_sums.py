"""Sums over the pixels of masks that never exist as a whole, forward and backward.

The masks of an image are functions of maps, row by row: strips of rows are made, summed up and
forgotten, and made again for the gradient. Besides the gradients of the maps, which have to be
somewhere, memory is needed for one strip. Each pixel of a map's gradient is written where it
belongs, in the gradient of the batch: there is no copy for each image or strip to be added up.

Shape letters: B images, N instances, P masks, J sums, C channels of a map, H W rows and columns.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Numbers of 4 bytes that a pixel takes while a strip's gradient is computed: of a mask (its
# probability, target, products, gradients) and of a map (a cast copy, its gradient). Measured, with
# what the allocator holds back.
NUMBERS_OF_MASK, NUMBERS_OF_MAP = 16, 6


@dataclass(frozen=True)
class BatchMasks:
    """Masks of a batch and how they are made.

    Attributes:
        maps: (B, C, H, W) each, at the size of the masks.
        params: (P, ...) each, what tells the masks of an image from each other; by image.
        make: maps (C, h, W) of an image and params (p, ...) to masks (p, h, W).
        radius: a row of masks depends on so many rows of maps above and below it.
        num_per_image: B numbers of masks, together P; on the host.
    """

    maps: Sequence[Tensor]
    params: Sequence[Tensor]
    make: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
    num_per_image: Sequence[int]
    radius: int = 0

    @property
    def num_bytes(self) -> int:
        """What the masks and their gradients take if all of them exist at once, about."""
        num_pixels = self.maps[0].shape[2] * self.maps[0].shape[3]
        channels = sum(x.shape[1] for x in self.maps)
        numbers = NUMBERS_OF_MASK * sum(self.num_per_image)
        return 4 * num_pixels * (numbers + NUMBERS_OF_MAP * channels * len(self.num_per_image))

    def whole_masks(self) -> Iterator[tuple[Tensor, slice]]:
        """Yield the masks (p, H, W) of each image, and which of the P they are."""
        start = 0
        for image, num in enumerate(self.num_per_image):
            samples = slice(start, start + num)
            params = [x[samples] for x in self.params]
            yield self.make([x[image] for x in self.maps], params), samples
            start += num


def sum_masks(
    masks: BatchMasks,
    targets: Tensor,
    instances: Tensor,
    pixel_sums: Callable[[Tensor, Tensor], Tensor],
    *,
    memory: int,
) -> Tensor:
    """Compare masks with their targets and add up over pixels.

    Gradients flow to the maps and params, and to what they were made of. They equal those of the
    whole masks up to the order of summation; the memory changes nothing but the strips.

    Args:
        masks: the predicted masks; P may be 0.
        targets: (N, H, W) bool.
        instances: (P,) int64 in [0, N), the target of each mask.
        pixel_sums: masks (p, h, W) and targets (p, h, W) to (p, J), sums over pixels.
        memory: bytes that a strip may take; it has one row at least.

    Returns:
        (P, J).
    """
    plan = _StripSums(
        masks.make, pixel_sums, masks.num_per_image, masks.radius, len(masks.maps), memory
    )
    inputs = (*masks.maps, *masks.params)
    return cast(Tensor, _SumMasks.apply(plan, targets, instances, *inputs))  # type: ignore[no-untyped-call]


class _Strip(NamedTuple):
    """Rows `start` to `stop` of the masks of an image, and the rows of maps that they need."""

    image: int
    samples: slice
    start: int
    stop: int
    needed: slice


@dataclass(frozen=True)
class _StripSums:
    """What the passes do; without tensors, which would outlive the backward pass.

    "Inputs" are the maps, then the params.
    """

    make: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
    pixel_sums: Callable[[Tensor, Tensor], Tensor]
    num_per_image: Sequence[int]
    radius: int
    num_maps: int
    memory: int

    def strips(self, inputs: Sequence[Tensor]) -> Iterator[_Strip]:
        """The strips, image by image; for an image without masks one without rows."""
        height, width = inputs[0].shape[-2:]
        channels = sum(x.shape[1] for x in inputs[: self.num_maps])
        first = 0
        for image, num in enumerate(self.num_per_image):
            samples = slice(first, first + num)
            row_bytes = 4 * width * (NUMBERS_OF_MASK * num + NUMBERS_OF_MAP * channels)
            rows = max(1, self.memory // max(1, row_bytes))
            for start in range(0, height if num else 1, rows):
                stop = min(start + rows, height) if num else 0
                needed = slice(max(0, start - self.radius), stop + self.radius)
                yield _Strip(image, samples, start, stop, needed)
            first += num

    def cut(self, inputs: Sequence[Any], strip: _Strip) -> list[Any]:
        """Views of what a strip needs of inputs, or of their gradients; None stays None."""
        maps = [
            x if x is None else x[strip.image, :, strip.needed] for x in inputs[: self.num_maps]
        ]
        return maps + [x if x is None else x[strip.samples] for x in inputs[self.num_maps :]]

    def sums(
        self, strip: _Strip, pieces: Sequence[Tensor], targets: Tensor, instances: Tensor
    ) -> Tensor:
        """(p, J), the sums over a strip, from its pieces of the inputs."""
        made = self.make(pieces[: self.num_maps], pieces[self.num_maps :])
        above = strip.start - strip.needed.start
        made = made[:, above : above + strip.stop - strip.start]
        return self.pixel_sums(made, targets[:, strip.start : strip.stop][instances[strip.samples]])


class _SumMasks(torch.autograd.Function):
    """Strip by strip, with a backward pass that makes each strip once more."""

    @staticmethod
    def forward(
        ctx: Any, plan: _StripSums, targets: Tensor, instances: Tensor, *inputs: Tensor
    ) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(targets, instances, *inputs)
        device = targets.device.type
        # The backward pass runs outside of the caller's autocast, but has to make the same masks.
        # Its cache would keep a copy of every strip.
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
            "cache_enabled": False,
        }
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
                x.detach().requires_grad_(want)
                for x, want in zip(plan.cut(inputs, strip), wanted, strict=True)
            ]
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                sums = plan.sums(strip, pieces, targets, instances)
            leaves = [x for x in pieces if x.requires_grad]
            parts = torch.autograd.grad(sums, leaves, grad_sums[strip.samples])
            places = [x for x in plan.cut(grads, strip) if x is not None]
            for place, part in zip(places, parts, strict=True):
                place += part
        return None, None, None, *grads
