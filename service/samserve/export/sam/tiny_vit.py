"""MobileSAM's image encoder: TinyViT, whose last stage has the resolution of the previous one.

Source: Wu et al., "TinyViT" (2022); Zhang et al., "Faster Segment Anything" (2023) and the original
code of the checkpoint, ChaoningZhang/MobileSAM.  State dict keys are those of its checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samserve.export.sam.config import SamConfig, TinyVitConfig
from samserve.export.sam.layers import LayerNorm2d
from samserve.export.sam.windows import Windows

MERGE_STRIDES = (2, 2, 1)
"""Strides of the merging after each stage but the last: from 256 x 256 to 64 x 64 cells."""

STEM_STRIDE = 4
EXPANSION = 4
"""Ratio of hidden channels to channels, in convolutional blocks and MLPs."""


class TinyVit(nn.Module):
    """Standardised images float32 ``[B,3,S,S]`` to embeddings ``[B,256,S/16,S/16]``."""

    def __init__(self, config: SamConfig, sizes: TinyVitConfig) -> None:
        super().__init__()
        widths = sizes.widths
        self.patch_embed = Stem(widths[0])
        side = config.image_size // STEM_STRIDE
        self.layers = nn.ModuleList([ConvolutionStage(widths[0], widths[1], sizes.depths[0])])
        for stage in range(1, len(widths)):
            side //= MERGE_STRIDES[stage - 1]
            blocks = [
                Block(widths[stage], sizes.heads[stage - 1], side, sizes.windows[stage - 1])
                for _ in range(sizes.depths[stage])
            ]
            merging = (
                Merging(widths[stage], widths[stage + 1], MERGE_STRIDES[stage])
                if stage + 1 < len(widths)
                else None
            )
            self.layers.append(AttentionStage(blocks, merging))
        self.neck = nn.Sequential(
            nn.Conv2d(widths[-1], config.channels, 1, bias=False),
            LayerNorm2d(config.channels),
            nn.Conv2d(config.channels, config.channels, 3, padding=1, bias=False),
            LayerNorm2d(config.channels),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embed images that are normalised and zero in their padding."""
        return self.with_early_features(images)[0]

    def with_early_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding, and the output of the second stage, ``[B,C,S/16,S/16]``."""
        planes = self.patch_embed(images)
        outputs = []
        for stage in self.layers:
            planes = stage(planes)
            outputs.append(planes)
        return self.neck(planes), outputs[1]


class ConvNorm(nn.Module):
    """A convolution without bias and its batch norm, on ``[B,C,h,w]``; ``groups`` as in torch."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.c = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, planes: Tensor) -> Tensor:
        """Convolve and normalise."""
        result: Tensor = self.bn(self.c(planes))
        return result


class Stem(nn.Module):
    """Images ``[B,3,S,S]`` to planes ``[B,C,S/4,S/4]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvNorm(3, width // 2, 3, stride=2),
            nn.GELU(),
            ConvNorm(width // 2, width, 3, stride=2),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Halve the resolution twice."""
        planes: Tensor = self.seq(images)
        return planes


class InvertedBottleneck(nn.Module):
    """Wide depthwise convolution between two pointwise ones, with a residual; shape kept."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = EXPANSION * width
        self.conv1 = ConvNorm(width, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, width)
        self.activation = nn.GELU()

    def forward(self, planes: Tensor) -> Tensor:
        """Map ``[B,C,h,w]``."""
        wide = self.activation(self.conv2(self.activation(self.conv1(planes))))
        result: Tensor = self.activation(planes + self.conv3(wide))
        return result


class Merging(nn.Module):
    """Changes the width, and halves the resolution if the stride is 2; planes to planes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs)
        self.conv2 = ConvNorm(outputs, outputs, 3, stride=stride, groups=outputs)
        self.conv3 = ConvNorm(outputs, outputs)
        self.activation = nn.GELU()

    def forward(self, planes: Tensor) -> Tensor:
        """Map ``[B,C,h,w]`` to ``[B,D,h/stride,w/stride]``."""
        wide = self.activation(self.conv2(self.activation(self.conv1(planes))))
        result: Tensor = self.conv3(wide)
        return result


class ConvolutionStage(nn.Module):
    """The first stage."""

    def __init__(self, width: int, next_width: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(InvertedBottleneck(width) for _ in range(depth))
        self.downsample = Merging(width, next_width, MERGE_STRIDES[0])

    def forward(self, planes: Tensor) -> Tensor:
        """Map ``[B,C,h,w]`` to ``[B,D,h/2,w/2]``."""
        for block in self.blocks:
            planes = block(planes)
        result: Tensor = self.downsample(planes)
        return result


class AttentionStage(nn.Module):
    """Any later stage; the last one has no merging."""

    def __init__(self, blocks: list[Block], merging: Merging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = merging

    def forward(self, planes: Tensor) -> Tensor:
        """Map ``[B,C,h,w]`` to ``[B,D,h/stride,w/stride]``."""
        cells = planes.permute(0, 2, 3, 1)
        for block in self.blocks:
            cells = block(cells)
        planes = cells.permute(0, 3, 1, 2)
        return planes if self.downsample is None else self.downsample(planes)


class Block(nn.Module):
    """Windowed attention, a depthwise convolution and an MLP on cells ``[B,h,w,C]``."""

    def __init__(self, width: int, heads: int, grid: int, window: int) -> None:
        super().__init__()
        self.windows = Windows(grid, window, width)
        self.attn = WindowAttention(width, heads, window)
        self.local_conv = ConvNorm(width, width, 3, groups=width)
        self.mlp = NormMlp(width)

    def forward(self, cells: Tensor) -> Tensor:
        """Mix cells, shape kept."""
        cells = cells + self.windows.join(self.attn(self.windows.split(cells)))
        cells = self.local_conv(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        result: Tensor = cells + self.mlp(cells)
        return result


class NormMlp(nn.Module):
    """Layer norm and two linear layers around a GELU, on the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, EXPANSION * width)
        self.fc2 = nn.Linear(EXPANSION * width, width)
        self.activation = nn.GELU()

    def forward(self, cells: Tensor) -> Tensor:
        """Map ``[...,C]``, shape kept."""
        result: Tensor = self.fc2(self.activation(self.fc1(self.norm(cells))))
        return result


class WindowAttention(nn.Module):
    """Multi-head self-attention over a square of cells, with one bias per distance and head."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.side, self.heads, self.head_width = side, heads, width // heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, side * side))

    def forward(self, cells: Tensor) -> Tensor:
        """Mix the cells of each square ``[n,side,side,C]``, shape kept."""
        side, heads, width = self.side, self.heads, self.head_width
        # The query, key and value of each head are adjacent.
        split = self.qkv(self.norm(cells)).reshape(-1, side * side, heads, 3, width)
        query, key, value = split.permute(3, 0, 2, 1, 4).unbind(0)
        scores = (query @ key.transpose(2, 3)) * width**-0.5
        weights = torch.softmax(scores + self.biases(), dim=3)
        mixed = (weights @ value).transpose(1, 2).reshape(-1, side, side, heads * width)
        result: Tensor = self.proj(mixed)
        return result

    def biases(self) -> Tensor:
        """Expand the biases to every pair of cells: ``[heads,side*side,side*side]``.

        In the checkpoint they are sorted by the first occurrence of their distance when the pairs
        are visited row by row, which is the order of the distances ``(rows, columns)``.
        """
        cell = torch.arange(self.side)
        distance = (cell.reshape(-1, 1) - cell.reshape(1, -1)).abs()
        pairs = distance.reshape(self.side, 1, self.side, 1) * self.side
        pairs = pairs + distance.reshape(1, self.side, 1, self.side)
        cells = self.side * self.side
        return self.attention_biases[:, pairs.reshape(cells, cells)]
