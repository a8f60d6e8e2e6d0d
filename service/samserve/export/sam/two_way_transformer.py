"""The two-way transformer of SAM's mask decoder: tokens and cells attend to each other.

``tokens`` are ``[n,T,C]``, ``cells`` ``[n,K,C]``, one row n per prompt; the position encodings are
``[n,T,C]`` (the input tokens) and ``[1,K,C]``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from samserve.export.sam.config import SamConfig
from samserve.export.sam.layers import TransformerMlp

HEADS = 8
"""The same in every SAM 1; cannot be derived from shapes."""


class TwoWayTransformer(nn.Module):
    """A stack of two-way blocks and a final attention of the tokens to the cells."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(config, first=number == 0) for number in range(config.decoder_depth)
        )
        self.final_attn_token_to_image = CrossAttention(config.channels, config.channels // 2)
        self.norm_final_attn = nn.LayerNorm(config.channels)

    def forward(
        self, cells: Tensor, cell_positions: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return tokens and cells after attention, shapes kept."""
        token_positions = tokens
        for layer in self.layers:
            tokens, cells = layer(tokens, cells, token_positions, cell_positions)
        attended = self.final_attn_token_to_image(
            tokens + token_positions, cells + cell_positions, cells
        )
        return self.norm_final_attn(tokens + attended), cells


class TwoWayBlock(nn.Module):
    """Tokens to tokens, tokens to cells, MLP on tokens, cells to tokens."""

    def __init__(self, config: SamConfig, *, first: bool) -> None:
        super().__init__()
        width, half = config.channels, config.channels // 2
        self.first = first
        self.self_attn = CrossAttention(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = CrossAttention(width, half)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = TransformerMlp(width, config.decoder_mlp_dim, nn.ReLU())
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = CrossAttention(width, half)

    def forward(
        self, tokens: Tensor, cells: Tensor, token_positions: Tensor, cell_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return tokens and cells, shapes kept."""
        tokens = self.norm1(self.among_tokens(tokens, token_positions))
        positioned_cells = cells + cell_positions
        attended = self.cross_attn_token_to_image(tokens + token_positions, positioned_cells, cells)
        tokens = self.norm2(tokens + attended)
        tokens = self.norm3(tokens + self.mlp(tokens))
        attended = self.cross_attn_image_to_token(
            positioned_cells, tokens + token_positions, tokens
        )
        return tokens, self.norm4(cells + attended)

    def among_tokens(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Apply self-attention; the first block adds no positions and has no residual."""
        if self.first:
            return self.self_attn(tokens, tokens, tokens)  # type: ignore[no-any-return]
        positioned = tokens + positions
        result: Tensor = tokens + self.self_attn(positioned, positioned, tokens)
        return result


class CrossAttention(nn.Module):
    """Multi-head attention, optionally with a smaller inner width."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.head_width = inner // HEADS
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map queries ``[n,Q,C]`` over keys and values ``[n,K,C]`` to ``[n,Q,C]``."""
        heads_first = self.heads(self.q_proj(query)).transpose(1, 2)
        keys = self.heads(self.k_proj(key)).permute(0, 2, 3, 1)
        values = self.heads(self.v_proj(value)).transpose(1, 2)
        weights = torch.softmax(heads_first @ keys / math.sqrt(self.head_width), dim=3)
        mixed = (weights @ values).transpose(1, 2).flatten(2)
        result: Tensor = self.out_proj(mixed)
        return result

    def heads(self, values: Tensor) -> Tensor:
        """Split ``[n,K,inner]`` into ``[n,K,heads,head_width]``."""
        return values.reshape(values.shape[0], values.shape[1], HEADS, self.head_width)
