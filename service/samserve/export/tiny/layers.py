"""Building blocks shared by the encoder and the decoder.

All feature maps are float ``[batch, channels, rows, columns]``.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

EMBEDDING_CHANNELS = 256
CELL = 16
"""Image pixels per embedding cell."""


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Return convolution and batch normalisation, which are folded into one node at export."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs, momentum=0.03),
    )


def channels_last(module: Module) -> Module:
    """Convert weights to the memory format in which CPUs convolve fastest."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a norm within one prompt: batch statistics would mix prompts of different rounds."""
    return nn.GroupNorm(8, channels)


def convolution(
    weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0
) -> nn.Conv2d:
    """Return a convolution with copies of the weights ``[O,I,k,k]`` and of the bias."""
    outputs, inputs, side = weight.shape[:3]
    layer = nn.Conv2d(inputs, outputs, int(side), stride, padding, bias=bias is not None)
    return _filled(layer, weight, bias)


def scaling(scale: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """Return a convolution that multiplies each channel by its scale and adds its bias."""
    channels = scale.numel()
    layer = nn.Conv2d(channels, channels, 1, groups=channels, bias=bias is not None)
    return _filled(layer, scale.reshape(-1, 1, 1, 1), bias)


def _filled(layer: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


class EncoderBlock(nn.Module):
    """Residual block of two 3x3 convolutions with batch normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_bn(channels, channels)
        self.second = conv_bn(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """Refine ``[B,C,h,w]`` features, shape kept."""
        return torch.relu(features + self.second(torch.relu(self.first(features))))


class PromptBlock(nn.Module):
    """Residual block of two 3x3 convolutions with group normalisation."""

    def __init__(self, channels: int, spread: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=spread, dilation=spread, bias=False)
        self.norm = group_norm(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=spread, dilation=spread)

    def forward(self, features: Tensor) -> Tensor:
        """Refine ``[B*P,C,h,w]`` features, shape kept."""
        return torch.relu(features + self.second(torch.relu(self.norm(self.first(features)))))


class GlobalAttention(nn.Module):
    """Self-attention over the coarsest grid, without positions: any grid size works."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """Mix ``[B,C,h,w]`` features over all h*w positions, shape kept."""
        batch, channels, rows, columns = features.shape
        tokens = features.flatten(2).transpose(1, 2)
        split = self.qkv(self.norm(tokens)).reshape(
            batch, rows * columns, 3, self.heads, channels // self.heads
        )
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        scale = float(channels // self.heads) ** -0.5
        weights = torch.softmax((query * scale) @ key.transpose(2, 3), dim=-1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, rows * columns, channels)
        update: Tensor = self.out(mixed).transpose(1, 2).reshape(batch, channels, rows, columns)
        return features + update
