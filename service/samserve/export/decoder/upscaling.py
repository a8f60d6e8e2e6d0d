"""Upscaling of cells to masks, as products on the last axis.

Both transposed convolutions have a kernel as large as their stride, so that every cell is upscaled
by itself.  Pixels stay in the order of the cells until the masks: a few planes are rearranged
instead of all channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class Norm(Protocol):
    """A layer norm over channels, whichever axis that is."""

    weight: nn.Parameter
    bias: nn.Parameter
    eps: float


@dataclass(frozen=True, slots=True)
class Upscaling:
    """The layers that upscale the ``K = grid * grid`` cells of an image to 4 x 4 pixels each."""

    first: nn.ConvTranspose2d
    norm: Norm
    second: nn.ConvTranspose2d
    grid: int

    def pixels(
        self, cells: Tensor, middle: Tensor | None = None, fine: Tensor | None = None
    ) -> Tensor:
        """Return features ``[n,K*16,C/8]`` of cells ``[n,K,C]``, ordered as `to_planes` expects.

        *middle* ``[n,K*4,C/4]`` and *fine* ``[n,K*16,C/8]`` are added where given; n may be 1 for
        these.
        """
        halves = upscaled(cells, self.first, self.grid**2)
        if middle is not None:
            halves = halves + middle
        halves = functional.gelu(normalised(self.norm, halves))
        pixels = upscaled(halves, self.second, 4 * self.grid**2)
        return functional.gelu(pixels if fine is None else pixels + fine)


def normalised(norm: Norm, features: Tensor) -> Tensor:
    """Apply a layer norm over channels to ``[...,C]``."""
    width = norm.weight.numel()
    return functional.layer_norm(features, (width,), norm.weight, norm.bias, norm.eps)


def upscaled(features: Tensor, convolution: nn.ConvTranspose2d, length: int) -> Tensor:
    """Apply a transposed convolution of 2 x 2 with a stride of 2: ``[n,k,C]`` to ``[n,k*4,D]``.

    *length* is k: a length that is derived in the traced graph fails if n is 0.
    """
    count, (inputs, outputs) = features.shape[0], convolution.weight.shape[:2]
    weight = convolution.weight.permute(0, 2, 3, 1).reshape(inputs, 4 * outputs)
    # With two axes and the bias of all four pixels, this becomes one operator of ONNX Runtime; a
    # bias that is added before GELU becomes one that is four times as slow as both.
    rows = features.reshape(count * length, inputs)
    assert convolution.bias is not None
    product = torch.addmm(convolution.bias.repeat(4), rows, weight)
    return product.reshape(count, 4 * length, outputs)


def mixed(mlps: Iterable[nn.Module], tokens: Tensor) -> Tensor:
    """Return how the mask tokens, the first of ``[n,T,C]``, mix features: ``[n,masks,C/8]``."""
    return torch.stack([mlp(tokens[:, index]) for index, mlp in enumerate(mlps)], 1)


def to_planes(pixels: Tensor, planes: int, grid: int) -> Tensor:
    """Rearrange ``[n,D,K*16]``, pixels in the order of cells, into *planes* D ``[n,D,4*g,4*g]``.

    The pixels of a cell are ordered by quarter, then by pixel of the quarter, both row by row.
    """
    count = pixels.shape[0]
    # Two moves of one axis each are faster in ONNX Runtime than one general transposition.
    quarters = pixels.reshape(count, planes * grid, grid, 2, 8).transpose(2, 3)
    rows = quarters.reshape(count, planes * grid * 2, grid * 2, 2, 2).transpose(2, 3)
    return rows.reshape(count, planes, 4 * grid, 4 * grid)


def by_cell(planes: Tensor, grid: int) -> Tensor:
    """Rearrange ``[n,D,s*g,s*g]``, with s = 2 or 4, into features ``[n,K*s*s,D]``.

    The inverse of `to_planes` for s = 4, except that features are on the last axis.
    """
    count, depth, side = planes.shape[0], planes.shape[1], planes.shape[2]
    pixels = planes.flatten(2).transpose(1, 2)
    # Moves of one axis each, as in `to_planes`.
    if side == 2 * grid:
        cells = pixels.reshape(count, grid, 2, grid, 2 * depth).transpose(2, 3)
        return cells.reshape(count, -1, depth)
    cells = pixels.reshape(count, grid, 4, grid, 4 * depth).transpose(2, 3)
    quarters = cells.reshape(count, 2 * grid * grid, 2, 2, 2 * depth).transpose(2, 3)
    return quarters.reshape(count, -1, depth)
