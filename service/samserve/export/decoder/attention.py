"""Cross-attention between a few tokens and many cells, without projections of the cells.

There are T tokens (7 for a click) and K = 4096 cells.  A product with the tokens first costs less
than a projection of all cells, and is equal because matrix products are associative.

``tokens`` are ``[B,P,T,C]``; ``cells`` are ``[B,G,K,C]``, with G = 1 if all P prompts of an image
have the same cells, else G = P.  Attention has ``heads`` heads of width d.
"""

from __future__ import annotations

import math

from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention, optionally with a smaller inner width."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map queries over keys and values, all ``[B,P,T,C]``, to ``[B,P,T,C]``."""
        queries = self.scaled(self.split(self.q_proj(query)))
        keys = self.split(self.k_proj(key))
        weights = (queries @ keys.transpose(3, 4)).softmax(4)
        return self.joined(weights @ self.split(self.v_proj(value)))

    def split(self, values: Tensor) -> Tensor:
        """Split ``[B,P,T,inner]`` into heads ``[B,P,heads,T,d]``."""
        batch, prompts, tokens = values.shape[0], values.shape[1], values.shape[2]
        width = self.q_proj.out_features // self.heads
        return values.reshape(batch, prompts, tokens, self.heads, width).transpose(2, 3)

    def joined(self, mixed: Tensor) -> Tensor:
        """Project heads ``[B,P,heads,T,d]`` to ``[B,P,T,C]``."""
        tokens = mixed.transpose(2, 3)
        inner = self.out_proj.in_features
        result: Tensor = self.out_proj(tokens.reshape(*lengths(tokens, 3), inner))
        return result

    def scaled(self, heads: Tensor) -> Tensor:
        """Scale queries, or keys, for the softmax."""
        return heads / math.sqrt(self.q_proj.out_features // self.heads)

    def per_head(self, weight: Tensor) -> Tensor:
        """Split a weight ``[inner,...]`` into heads ``[heads,d,...]``."""
        return weight.reshape(self.heads, weight.shape[0] // self.heads, *weight.shape[1:])


class CrossAttention(Attention):
    """Attention between tokens and cells.

    *shared*: all prompts of an image may have the same cells, G = 1; else G is P.
    """

    def __init__(self, width: int, inner: int, heads: int, *, shared: bool = False) -> None:
        super().__init__(width, inner, heads)
        self.shared = shared

    def by_group(self, absorbed: Tensor, cells: Tensor) -> Tensor:
        """Return ``[B,G,*,C]`` of ``[B,P,heads,T,C]``, for one product with ``[B,G,K,C]``."""
        groups = lengths(cells if self.shared else absorbed, 2)
        return absorbed.reshape(*groups, -1, self.q_proj.in_features)


class TokensToCells(CrossAttention):
    """Tokens attend to cells.

    The scores are ``(q W_k) x``, and the result is ``(A x) W_v``.  The bias of the keys is the same
    for all cells and cancels in the softmax; rows of A sum to 1, so the bias of the values is added
    once.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map queries ``[B,P,T,C]`` over keys and values ``[B,G,K,C]`` to ``[B,P,T,C]``."""
        absorbed = self.scaled(self.split(self.q_proj(query))) @ self.per_head(self.k_proj.weight)
        mixed = (self.by_group(absorbed, key) @ key.transpose(2, 3)).softmax(3) @ value
        values = self.per_head(self.v_proj.weight).transpose(1, 2)
        bias = self.per_head(self.v_proj.bias).unsqueeze(1)
        return self.joined(mixed.reshape_as(absorbed) @ values + bias)


class CellsToTokens(CrossAttention):
    """Cells attend to tokens.

    The scores are ``x (W_q k) + b_q k``, and the result is the sum over the heads of
    ``A (v W_out)``: one product with the tokens of all heads side by side.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map queries ``[B,G,K,C]`` over keys and values ``[B,P,T,C]`` to ``[B,P,K,C]``."""
        keys = self.scaled(self.split(self.k_proj(key)))
        absorbed = keys @ self.per_head(self.q_proj.weight)
        # The same for all inputs of a traced graph.
        cells = int(query.shape[2])
        scores = self.by_group(absorbed, query) @ query.transpose(2, 3)
        prompts = lengths(key if self.shared else scores, 2)
        scores = scores.reshape(*prompts, self.heads, -1, cells)
        scores = scores + keys @ self.per_head(self.q_proj.bias).unsqueeze(2)
        weights = softmax_of_few(scores)
        outputs = self.per_head(self.out_proj.weight.t())
        # The weights of a cell sum to 1 for each head, so these add the bias once.
        mixes = self.split(self.v_proj(value)) @ outputs + self.out_proj.bias / self.heads
        weights = weights.reshape(*lengths(weights, 2), -1, cells)
        mixes = mixes.reshape(*lengths(mixes, 2), -1, self.out_proj.out_features)
        return weights.transpose(2, 3) @ mixes


def lengths(values: Tensor, count: int) -> tuple[int, ...]:
    """Return the first *count* lengths of *values*.

    If a reshape in a traced graph keeps these lengths of its own input and has constants for the
    others, ONNX Runtime replaces the operators that compute its shape by a constant.
    """
    return tuple(values.shape[axis] for axis in range(count))


def softmax_of_few(scores: Tensor) -> Tensor:
    """Return the softmax over the last but one axis, which is short.

    Step by step: ONNX Runtime transposes twice for a softmax over another axis than the last.
    """
    weights = (scores - scores.amax(3, keepdim=True)).exp()
    return weights / weights.sum(3, keepdim=True)
