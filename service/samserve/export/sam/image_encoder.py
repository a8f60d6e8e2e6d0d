"""SAM's image encoder: a plain ViT with windowed and a few global attention blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from samserve.export.sam.config import SamConfig
from samserve.export.sam.layers import LayerNorm2d, TransformerMlp


class ImageEncoder(nn.Module):
    """Standardised pictures float32 ``[B,3,S,S]`` to embeddings ``[B,256,S/16,S/16]``."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid, config.grid, config.embed_dim))
        self.blocks = nn.ModuleList(Block(config, window) for window in config.windows)
        self.neck = nn.Sequential(
            nn.Conv2d(config.embed_dim, config.channels, 1, bias=False),
            LayerNorm2d(config.channels),
            nn.Conv2d(config.channels, config.channels, 3, padding=1, bias=False),
            LayerNorm2d(config.channels),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Embed pictures that are normalised and zero in their padding."""
        cells = self.patch_embed(pictures) + self.pos_embed
        for block in self.blocks:
            cells = block(cells)
        embedding: Tensor = self.neck(cells.permute(0, 3, 1, 2))
        return embedding


class PatchEmbedding(nn.Module):
    """One vector per patch: ``[B,3,S,S]`` to ``[B,grid,grid,C]``."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv2d(3, config.embed_dim, patch, stride=patch)

    def forward(self, pictures: Tensor) -> Tensor:
        """Project patches, channels last."""
        patches: Tensor = self.proj(pictures)
        return patches.permute(0, 2, 3, 1)


class Block(nn.Module):
    """Attention and MLP with residuals on ``[B,grid,grid,C]``.

    Attention looks around inside windows of ``window`` cells, or everywhere where ``window`` is
    the grid.
    """

    def __init__(self, config: SamConfig, window: int) -> None:
        super().__init__()
        self.is_global = window == config.grid
        self.windows = Windows(config.grid, window, config.embed_dim)
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.attn = Attention(config, window)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.mlp = TransformerMlp(config.embed_dim, config.mlp_dim, nn.GELU())

    def forward(self, cells: Tensor) -> Tensor:
        """Mix cells, shape kept."""
        cells = cells + self.attend(self.norm1(cells))
        result: Tensor = cells + self.mlp(self.norm2(cells))
        return result

    def attend(self, cells: Tensor) -> Tensor:
        """Attention alone, shape kept."""
        mixed: Tensor = self.attn(cells if self.is_global else self.windows.split(cells))
        return mixed if self.is_global else self.windows.join(mixed)


class Attention(nn.Module):
    """Multi-head self-attention over a square of cells, with decomposed relative positions."""

    def __init__(self, config: SamConfig, side: int) -> None:
        super().__init__()
        self.side, self.heads = side, config.heads
        self.head_width = config.embed_dim // config.heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, self.head_width))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, self.head_width))

    def forward(self, cells: Tensor) -> Tensor:
        """Mix the cells of each square ``[n,side,side,C]``, shape kept.

        Only the first axis is left open in every reshape, so that the exported graph holds
        constant shapes and no arithmetic on them.
        """
        side, heads, width = self.side, self.heads, self.head_width
        split = self.qkv(cells).reshape(-1, side * side, 3, heads, width)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (query * width**-0.5) @ key.transpose(2, 3)
        scores = scores.reshape(-1, heads, side * side, side, side)
        along_rows, along_columns = self.position_scores(query)
        scores = scores + along_rows.unsqueeze(4) + along_columns.unsqueeze(3)
        weights = torch.softmax(scores.reshape(-1, heads, side * side, side * side), dim=3)
        mixed = (weights @ value).transpose(1, 2).reshape(-1, side, side, heads * width)
        result: Tensor = self.proj(mixed)
        return result

    def position_scores(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the distances in rows and in columns, from unscaled queries.

        ``query`` is ``[n,heads,side*side,width]``; both results are
        ``[n,heads,side*side,side]`` with the key's row, respectively column, last.
        """
        side, heads = self.side, self.heads
        square = query.reshape(-1, heads, side, side, self.head_width)
        rows = square @ distance_table(self.rel_pos_h, side)
        columns = square.transpose(2, 3) @ distance_table(self.rel_pos_w, side)
        shape = (-1, heads, side * side, side)
        return rows.reshape(shape), columns.transpose(2, 3).reshape(shape)


def distance_table(table: Tensor, side: int) -> Tensor:
    """Spread ``[2*side-1,width]`` to ``[side,width,side]``, query cell first, key last."""
    cell = torch.arange(side)
    distance = cell.reshape(-1, 1) - cell.reshape(1, -1) + (side - 1)
    return table[distance].transpose(1, 2)


@dataclass(frozen=True, slots=True)
class Windows:
    """Cutting ``[B,grid,grid,C]`` into ``count * count`` windows per picture and back."""

    grid: int
    side: int
    channels: int

    @property
    def count(self) -> int:
        """Windows along one side of the grid; the last ones may stick out."""
        return -(-self.grid // self.side)

    def split(self, cells: Tensor) -> Tensor:
        """Cut into ``[B*count*count,side,side,C]``; zero cells fill what sticks out.

        The filling takes part in attention, as it did in training.
        """
        count, side = self.count, self.side
        missing = count * side - self.grid
        padded = functional.pad(cells, (0, 0, 0, missing, 0, missing))
        blocks = padded.reshape(-1, count, side, count, side, self.channels)
        return blocks.transpose(2, 3).reshape(-1, side, side, self.channels)

    def join(self, windows: Tensor) -> Tensor:
        """Undo :meth:`split`."""
        count, side = self.count, self.side
        blocks = windows.reshape(-1, count, count, side, side, self.channels).transpose(2, 3)
        whole = blocks.reshape(-1, count * side, count * side, self.channels)
        return whole[:, : self.grid, : self.grid]
