"""The two-way transformer of SAM's mask decoder: tokens and cells attend to each other.

The same in all families.  ``tokens`` are ``[B,P,T,C]``; ``cells`` are ``[B,G,K,C]``, with G = 1 if
all P prompts of an image have the same cells, as without mask prompts, else G = P: what does not
depend on the prompt is computed once per image.  Position encodings are ``[B,P,T,C]`` (the input
tokens) and ``[1,K,C]``.
"""

from __future__ import annotations

from torch import Tensor, nn

from samserve.export.decoder.attention import Attention, CellsToTokens, TokensToCells
from samserve.export.sam.layers import TransformerMlp

HEADS = 8
"""The same in all models; cannot be derived from shapes."""


def to_cells(embedding: Tensor) -> Tensor:
    """Return cells ``[B,1,K,C]`` of an embedding ``[B,C,g,g]``, as float32."""
    # The same for all inputs of a traced graph.
    width, side = int(embedding.shape[1]), int(embedding.shape[2])
    return embedding.float().reshape(-1, 1, width, side * side).transpose(2, 3)


class TwoWayTransformer(nn.Module):
    """A stack of two-way blocks and a final attention of the tokens to the cells."""

    def __init__(self, width: int, mlp_width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(width, mlp_width, first=number == 0) for number in range(depth)
        )
        self.final_attn_token_to_image = TokensToCells(width, width // 2, HEADS)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(
        self, cells: Tensor, cell_positions: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return tokens ``[B,P,T,C]`` and cells ``[B,P,K,C]`` after attention."""
        token_positions = tokens
        for layer in self.layers:
            tokens, cells = layer(tokens, cells, token_positions, cell_positions)
        attended = self.final_attn_token_to_image(
            tokens + token_positions, cells + cell_positions, cells
        )
        return self.norm_final_attn(tokens + attended), cells


class TwoWayBlock(nn.Module):
    """Tokens to tokens, tokens to cells, MLP on tokens, cells to tokens."""

    def __init__(self, width: int, mlp_width: int, *, first: bool) -> None:
        super().__init__()
        half = width // 2
        self.first = first
        self.self_attn = Attention(width, width, HEADS)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = TokensToCells(width, half, HEADS, shared=first)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = TransformerMlp(width, mlp_width, nn.ReLU())
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = CellsToTokens(width, half, HEADS, shared=first)

    def forward(
        self, tokens: Tensor, cells: Tensor, token_positions: Tensor, cell_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return tokens ``[B,P,T,C]`` and cells ``[B,P,K,C]``."""
        tokens = self.norm1(self.among_tokens(tokens, token_positions))
        positioned_cells = cells + cell_positions
        attended = self.cross_attn_token_to_image(tokens + token_positions, positioned_cells, cells)
        tokens = self.norm2(tokens + attended)
        tokens = self.norm3(tokens + self.mlp(tokens))
        attended = self.cross_attn_image_to_token(
            positioned_cells, tokens + token_positions, tokens
        )
        # With four axes: ONNX Runtime fuses this sum and norm of three axes, which takes longer.
        return tokens, self.norm4(cells + attended)

    def among_tokens(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Apply self-attention; the first block adds no positions and has no residual."""
        if self.first:
            return self.self_attn(tokens, tokens, tokens)  # type: ignore[no-any-return]
        positioned = tokens + positions
        result: Tensor = tokens + self.self_attn(positioned, positioned, tokens)
        return result
