"""3x3 convolutions on a CPU by Winograd's algorithm F(4x4, 3x3) (arXiv:1509.09308).

A tile of 4x4 output pixels depends on a window of 6x6 input pixels. Windows and kernels are
transformed such that the convolution becomes 36 matrix products over the channels, with a quarter
of the multiplications (section 4.1 of the paper):

    Y = A' [(G w G') * (B' X B)] A

X is a window, w a kernel, Y a tile, and * multiplies the 36 positions separately. The matrices
follow from points at which polynomials are evaluated. In float32 the relative error is 1e-6: half
as large as with the usual points 0, 1, -1, 2 and -2, and up to six times as large as that of a
direct convolution (random images and kernels of 256 channels).

N images, C input and O output channels, H W size, T tiles.
"""

import threading
from collections.abc import Iterator
from functools import partial
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

TILE, KERNEL = 4, 3
WINDOW = TILE + KERNEL - 1
POINTS = (0.0, sqrt(2), -sqrt(2), sqrt(0.5), -sqrt(0.5))
# Tiles that are transformed and multiplied together, such that they stay in the cache.
TILES_AT_ONCE = 304


def transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Return the matrices of windows, kernels and tiles for both axes, in float64.

    Returns:
        B' (36, 36), G (36, 9) and A' (16, 36), for windows, kernels and products in row-major
        order.
    """
    points = torch.tensor(POINTS, dtype=torch.float64)

    def evaluate(terms: int) -> Tensor:
        """Return the values of polynomials at the points and at infinity, (6, terms)."""
        infinity = torch.zeros(terms, dtype=torch.float64)
        infinity[-1] = 1
        return torch.cat([points[:, None] ** torch.arange(terms), infinity[None]])

    # Lagrange denominators: they may scale either side, and kernels are transformed only once.
    scale = (points[:, None] - points).fill_diagonal_(1).prod(dim=1)
    scale = torch.cat([scale, scale.new_ones(1)])[:, None]
    windows = torch.linalg.inv(evaluate(WINDOW)).T * scale
    kernels = evaluate(KERNEL) / scale
    return (
        torch.kron(windows, windows),
        torch.kron(kernels, kernels),
        torch.kron(evaluate(TILE).T, evaluate(TILE).T),
    )


_WINDOWS, _KERNELS, _TILES = (matrix.float() for matrix in transforms())


def is_wide(weight: Tensor) -> bool:
    """Return whether a weight (O, C, 3, 3) has enough channels to be faster.

    For each pixel the transforms cost C + O, and the products save C * O.
    """
    outputs, channels = weight.shape[:2]
    return weight.shape[2:] == (KERNEL, KERNEL) and channels * outputs >= 64 * (channels + outputs)


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `conv2d(x, weight, bias, padding=1)`, with gradients.

    Args:
        x: (N, C, H, W) float32 on the CPU; channels_last is faster.
        weight: (O, C, 3, 3) float32.
        bias: (O,) float32, or None.

    Returns:
        (N, O, H, W), channels_last.
    """
    return _WinogradConv2d.apply(x, weight, bias)


def transform_kernels(weight: Tensor, out: Tensor | None = None) -> Tensor:
    """Transform (O, C, 3, 3) to (36, C, O)."""
    rows = weight.permute(2, 3, 1, 0).reshape(KERNEL**2, -1)
    if out is not None:
        out = out.view(len(_KERNELS), -1)
    return torch.mm(_KERNELS, rows, out=out).view(-1, weight.shape[1], weight.shape[0])


def convolve(x: Tensor, kernels: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve (N, C, H, W) with transformed kernels (36, C, O); see `winograd_conv2d`."""
    outputs = kernels.shape[2]
    windows = _padded(x, halo=1)
    tiles = x.new_empty(len(x), *_rounded_up(x), outputs)
    for result, window in zip(_pieces(tiles, TILE), _pieces(windows, WINDOW), strict=True):
        inputs = _transformed(_WINDOWS, window, "windows")
        products = _scratch.get("gathered", len(kernels), inputs.shape[1], outputs)
        torch.bmm(inputs, kernels, out=products)
        values = _scratch.get("windows", len(_TILES), products[0].numel())
        torch.mm(_TILES, products.flatten(1), out=values)
        torch.add(values.view(result.shape), 0 if bias is None else bias, out=result)
    return tiles[:, : x.shape[2], : x.shape[3]].permute(0, 3, 1, 2)


def weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient (O, C, 3, 3) of the weight.

    Args:
        x: input (N, C, H, W).
        grad: gradient of the output (N, O, H, W).
    """
    channels, outputs = x.shape[1], grad.shape[1]
    total = _scratch.get("kernels", len(_KERNELS), channels, outputs).zero_()
    tiles, windows = _padded(grad, halo=0), _padded(x, halo=1)
    for tile, window in zip(_pieces(tiles, TILE), _pieces(windows, WINDOW), strict=True):
        inputs = _transformed(_WINDOWS, window, "windows")
        total.baddbmm_(inputs.transpose(1, 2), _transformed(_TILES.T, tile, "tiles"))
    gradient = torch.mm(_KERNELS.T, total.flatten(1)).view(KERNEL, KERNEL, channels, outputs)
    return gradient.permute(3, 2, 0, 1).contiguous()


class _WinogradConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolve(x, transform_kernels(weight, _kernels_scratch(weight)), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            turned = weight.flip(2, 3).transpose(0, 1)
            grad_x = convolve(grad, transform_kernels(turned, _kernels_scratch(weight)))
        if ctx.needs_input_grad[1]:
            grad_weight = weight_gradient(x, grad)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(dim=(0, 2, 3))
        return grad_x, grad_weight, grad_bias


class WinogradConvolutions(TorchFunctionMode):
    """Context in which suitable calls of `conv2d` use Winograd's algorithm.

    Suitable are 3x3 convolutions of float32 on a CPU with stride 1 and padding 1, if they have
    enough channels and pixels to be faster. All others run as usual, and so does everything with
    autocast.

    The model should be channels_last. Gradients of other convolutions than 1x1 are several times
    slower in that format, so these run in the default one while gradients are recorded.
    """

    def __init__(self, *, keep_kernels: bool = False):
        """Create the context.

        Args:
            keep_kernels: for inference: without gradients, keep transformed kernels until their
                weight changes (four times the memory of the weights).
        """
        super().__init__()
        self.keep_kernels = keep_kernels
        self._kernels = WeakTensorKeyDictionary()

    def __reduce__(self) -> Any:
        return partial(WinogradConvolutions, keep_kernels=self.keep_kernels), ()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch."""
        call = func if func is not torch.conv2d else self._conv2d
        return call(*args, **(kwargs or {}))

    def _conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        options = (stride, padding, dilation, groups)
        is_float = input.dtype == weight.dtype == torch.float32 and input.device.type == "cpu"
        if not is_float or torch.is_autocast_enabled("cpu") or input.dim() != 4:
            return torch.conv2d(input, weight, bias, *options)
        is_plain = all(x in (1, (1, 1), [1, 1]) for x in options)
        num_tiles = len(input) * prod(_rounded_up(input)) // TILE**2
        # The transform of a kernel costs as much as that of about 30 tiles.
        if not is_plain or not is_wide(weight) or num_tiles < 30:
            if torch.is_grad_enabled() and weight.requires_grad and prod(weight.shape[2:]) > 1:
                input, weight = input.contiguous(), weight.contiguous()
            return torch.conv2d(input, weight, bias, *options)
        if not self.keep_kernels or torch.is_grad_enabled():
            return winograd_conv2d(input, weight, bias)
        version = None if weight.is_inference() else weight._version
        kept_version, kernels = self._kernels.get(weight, (None, None))
        if kernels is None or kept_version != version:
            kernels = transform_kernels(weight)
            self._kernels[weight] = version, kernels
        return convolve(input, kernels, bias)


class _Scratch(threading.local):
    """Buffers of a thread, which are reused because fresh memory costs more than a transform."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        size = prod(shape)
        buffer = self.buffers.get(name)
        if buffer is None or len(buffer) < size:
            self.buffers.pop(name, None)
            with torch.inference_mode(False):  # else it could not be used outside that mode
                buffer = self.buffers[name] = torch.empty(size)
        return buffer[:size].view(shape)


_scratch = _Scratch()


def _kernels_scratch(weight: Tensor) -> Tensor:
    return _scratch.get("kernels", len(_KERNELS), weight.shape[0] * weight.shape[1])


def _rounded_up(x: Tensor) -> tuple[int, int]:
    """Return the size of (N, C, H, W) in whole tiles, in pixels."""
    return -(-x.shape[2] // TILE) * TILE, -(-x.shape[3] // TILE) * TILE


def _padded(x: Tensor, *, halo: int) -> Tensor:
    """Pad (N, C, H, W) with zeros to (N, H', W', C): to whole tiles, and by `halo` on all sides."""
    height, width = _rounded_up(x)
    padded = x.new_zeros(len(x), height + 2 * halo, width + 2 * halo, x.shape[1])
    inside = padded[:, halo : halo + x.shape[2], halo : halo + x.shape[3]]
    inside.copy_(x.permute(0, 2, 3, 1))
    return padded


def _pieces(x: Tensor, side: int) -> Iterator[Tensor]:
    """View the windows or tiles of (N, H', W', C) as tensors (side, side, rows, columns, C)."""
    (_, height, width, channels), (image, row, column, _) = x.shape, x.stride()
    rows, columns = (height - side) // TILE + 1, (width - side) // TILE + 1
    step = max(1, TILES_AT_ONCE // columns)
    for number in range(len(x)):
        for first in range(0, rows, step):
            yield x.as_strided(
                (side, side, min(step, rows - first), columns, channels),
                (row, column, TILE * row, TILE * column, 1),
                number * image + first * TILE * row,
            )


def _transformed(matrix: Tensor, piece: Tensor, name: str) -> Tensor:
    """Apply a matrix to windows or tiles: (side, side, rows, columns, C) to (36, T, C)."""
    gathered = _scratch.get("gathered", matrix.shape[1], piece[0, 0].numel())
    gathered.view(piece.shape).copy_(piece)
    result = _scratch.get(name, len(matrix), gathered.shape[1])
    return torch.mm(matrix, gathered, out=result).view(len(matrix), -1, piece.shape[-1])
