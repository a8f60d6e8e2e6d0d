"""SAM's mask decoder: four masks and their predicted IoU per prompt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samserve.export.sam.config import SamConfig
from samserve.export.sam.layers import LayerNorm2d, Mlp
from samserve.export.sam.two_way_transformer import TwoWayTransformer

MASKS = 4
"""Mask tokens: the single mask, then whole, part and subpart."""


class MaskDecoder(nn.Module):
    """Decodes prompts, each as one row n of its inputs."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        width = config.channels
        self.grid = config.grid
        self.transformer = TwoWayTransformer(config)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(MASKS, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, stride=2),
            LayerNorm2d(width // 4),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            Mlp(width, width, width // 8, 3) for _ in range(MASKS)
        )
        self.iou_prediction_head = Mlp(width, width, MASKS, 3)

    def output_tokens(self) -> Tensor:
        """Return the tokens that precede those of a prompt: ``[5,256]``."""
        return torch.cat([self.iou_token.weight, self.mask_tokens.weight])

    def forward(self, cells: Tensor, positions: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[n,4,4*grid,4*grid]`` and predicted IoU ``[n,4]``.

        ``cells`` ``[n,grid*grid,256]`` embedding plus mask, ``positions`` ``[1,grid*grid,256]``,
        ``tokens`` ``[n,5+N,256]`` output tokens and the prompt's.
        """
        tokens, fine = self.decode(cells, positions, tokens)
        return self.masks(tokens, fine)

    def decode(self, cells: Tensor, positions: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens, shape kept, and planes ``[n,32,4*grid,4*grid]``; see `forward`."""
        tokens, cells = self.transformer(cells, positions, tokens)
        planes = cells.transpose(1, 2).reshape(-1, cells.shape[2], self.grid, self.grid)
        return tokens, self.output_upscaling(planes)

    def masks(self, tokens: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and predicted IoU from the result of `decode`; see `forward`."""
        # Token 0 predicts the IoU, tokens 1 to 4 the masks.
        mixes = [mlp(tokens[:, 1 + k]) for k, mlp in enumerate(self.output_hypernetworks_mlps)]
        logits = torch.stack(mixes, 1) @ fine.flatten(2)
        side = 4 * self.grid
        return logits.reshape(-1, MASKS, side, side), self.iou_prediction_head(tokens[:, 0])
