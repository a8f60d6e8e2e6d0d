"""SAM's image encoder: a plain ViT with windowed attention and a few global attention blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samserve.export.sam.config import SamConfig, VitConfig
from samserve.export.sam.layers import LayerNorm2d, TransformerMlp
from samserve.export.sam.windows import Windows


class ImageEncoder(nn.Module):
    """Standardised images float32 ``[B,3,S,S]`` to embeddings ``[B,256,S/16,S/16]``."""

    def __init__(self, config: SamConfig, sizes: VitConfig) -> None:
        super().__init__()
        grid = config.grid
        self.patch_embed = PatchEmbedding(sizes)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, sizes.embed_dim))
        self.blocks = nn.ModuleList(Block(sizes, window, grid) for window in sizes.windows)
        self.neck = nn.Sequential(
            nn.Conv2d(sizes.embed_dim, config.channels, 1, bias=False),
            LayerNorm2d(config.channels),
            nn.Conv2d(config.channels, config.channels, 3, padding=1, bias=False),
            LayerNorm2d(config.channels),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embed images that are normalised and zero in their padding."""
        return self.with_early_features(images)[0]

    def with_early_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding, and the output of the first global block, ``[B,C,S/16,S/16]``."""
        cells = self.patch_embed(images) + self.pos_embed
        early = []
        for block in self.blocks:
            cells = block(cells)
            if block.is_global:
                early.append(cells)
        embedding: Tensor = self.neck(cells.permute(0, 3, 1, 2))
        # Without a global block, which only an unusual SAM lacks, the output of the last one.
        return embedding, [*early, cells][0].permute(0, 3, 1, 2)


class PatchEmbedding(nn.Module):
    """One vector per patch: ``[B,3,S,S]`` to ``[B,grid,grid,C]``."""

    def __init__(self, sizes: VitConfig) -> None:
        super().__init__()
        patch = sizes.patch_size
        self.proj = nn.Conv2d(3, sizes.embed_dim, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """Project patches, channels last."""
        patches: Tensor = self.proj(images)
        return patches.permute(0, 2, 3, 1)


class Block(nn.Module):
    """Attention and MLP with residuals on ``[B,grid,grid,C]``.

    Attention is limited to windows of ``window`` cells per side, or global if ``window`` equals the
    grid.
    """

    def __init__(self, sizes: VitConfig, window: int, grid: int) -> None:
        super().__init__()
        self.is_global = window == grid
        self.windows = Windows(grid, window, sizes.embed_dim)
        self.norm1 = nn.LayerNorm(sizes.embed_dim, eps=1e-6)
        self.attn = Attention(sizes, window)
        self.norm2 = nn.LayerNorm(sizes.embed_dim, eps=1e-6)
        self.mlp = TransformerMlp(sizes.embed_dim, sizes.mlp_dim, nn.GELU())

    def forward(self, cells: Tensor) -> Tensor:
        """Mix cells, shape kept."""
        cells = cells + self.attend(self.norm1(cells))
        result: Tensor = cells + self.mlp(self.norm2(cells))
        return result

    def attend(self, cells: Tensor) -> Tensor:
        """Apply the attention only, shape kept."""
        mixed: Tensor = self.attn(cells if self.is_global else self.windows.split(cells))
        return mixed if self.is_global else self.windows.join(mixed)


class Attention(nn.Module):
    """Multi-head self-attention over a square of cells, with decomposed relative positions.

    A score is ``q.k`` plus a term for the distance in rows and one for the distance in columns.
    Both are entries of the query's own lists ``rows`` and ``columns``, so the whole score is one
    product, ``[q,rows,columns].[k,one-hot row,one-hot column]``: plain attention, which fused
    kernels support, and bit-identical to adding the terms if sums are evaluated in order.
    """

    def __init__(self, sizes: VitConfig, side: int) -> None:
        super().__init__()
        self.side, self.heads = side, sizes.heads
        self.head_width = sizes.embed_dim // sizes.heads
        self.qkv = nn.Linear(sizes.embed_dim, 3 * sizes.embed_dim)
        self.proj = nn.Linear(sizes.embed_dim, sizes.embed_dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, self.head_width))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, self.head_width))

    def forward(self, cells: Tensor) -> Tensor:
        """Mix the cells of each square ``[n,side,side,C]``, shape kept.

        Only the first axis of every reshape is dynamic, so that the exported graph has constant
        shapes and no arithmetic on them.
        """
        side, heads, width = self.side, self.heads, self.head_width
        split = self.qkv(cells).reshape(-1, side * side, 3, heads, width)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        rows, columns = self.position_scores(query)
        extended_query = torch.cat([query * width**-0.5, rows, columns], 3)
        positions = one_hot_positions(side).to(key.dtype)
        positions = positions.expand(key.shape[0], heads, side * side, 2 * side)
        extended_key = torch.cat([key, positions], 3)
        weights = torch.softmax(extended_query @ extended_key.transpose(2, 3), dim=3)
        mixed = (weights @ value).transpose(1, 2).reshape(-1, side, side, heads * width)
        result: Tensor = self.proj(mixed)
        return result

    def position_scores(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of the distances in rows and in columns, from unscaled queries.

        ``query`` is ``[n,heads,side*side,width]``; both results are
        ``[n,heads,side*side,side]`` with the row or column of the key as the last axis.
        """
        side, heads = self.side, self.heads
        square = query.reshape(-1, heads, side, side, self.head_width)
        rows = square @ distance_table(self.rel_pos_h, side)
        columns = square.transpose(2, 3) @ distance_table(self.rel_pos_w, side)
        shape = (-1, heads, side * side, side)
        return rows.reshape(shape), columns.transpose(2, 3).reshape(shape)


def one_hot_positions(side: int) -> Tensor:
    """Return row and column of every cell, each one-hot: ``[side*side,2*side]``."""
    row, column = torch.eye(side).repeat_interleave(side, 0), torch.eye(side).repeat(side, 1)
    return torch.cat([row, column], 1)


def distance_table(table: Tensor, side: int) -> Tensor:
    """Expand ``[2*side-1,width]`` to ``[side,width,side]``, query cell first, key last."""
    cell = torch.arange(side)
    distance = cell.reshape(-1, 1) - cell.reshape(1, -1) + (side - 1)
    return table[distance].transpose(1, 2)
