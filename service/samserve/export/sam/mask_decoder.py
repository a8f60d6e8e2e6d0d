"""SAM's mask decoder: four masks and their predicted IoU per prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from samserve.export.decoder.survivors import Survivors
from samserve.export.decoder.two_way import TwoWayTransformer
from samserve.export.decoder.upscaling import Upscaling, mixed, to_planes
from samserve.export.sam.config import SamConfig
from samserve.export.sam.layers import LayerNorm2d, Mlp

MASKS = 4
"""Mask tokens: the single mask, then whole, part and subpart."""


class MaskDecoder(nn.Module):
    """Decodes prompts, each as one row n of its inputs."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        width = config.channels
        self.grid = config.grid
        self.transformer = TwoWayTransformer(width, config.decoder_mlp_dim, config.decoder_depth)
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

    def forward(
        self, cells: Tensor, positions: Tensor, tokens: Tensor, iou_threshold: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return logits ``[B,P,4,4*grid,4*grid]`` and predicted IoU ``[B,P,4]``.

        ``cells`` ``[B,G,K,256]`` embedding plus mask, ``positions`` ``[1,K,256]``, ``tokens``
        ``[B,P,5+N,256]`` output tokens and the prompt's; ``iou_threshold`` ``[B,4]``: logits are
        zeros for a prompt without a predicted IoU of at least that.
        """
        tokens, cells = self.transformer(cells, positions, tokens)
        iou = self.iou_prediction_head(tokens[:, :, 0])
        survivors = Survivors.of(iou, iou_threshold)
        logits = self.masks(survivors.take(tokens), self.upscaled(survivors.take(cells)))
        return survivors.scatter(logits), iou

    def upscaled(self, cells: Tensor) -> Tensor:
        """Return the features ``[n,K*16,32]`` of cells ``[n,K,256]``; see `Upscaling`."""
        layers: Any = self.output_upscaling
        return Upscaling(layers[0], layers[1], layers[3], self.grid).pixels(cells)

    def masks(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """Return logits ``[n,4,4*grid,4*grid]`` of tokens ``[n,5+N,256]`` and `upscaled` cells."""
        # Token 0 predicts the IoU, tokens 1 to 4 the masks.
        mixes = mixed(self.output_hypernetworks_mlps, tokens[:, 1:])
        return to_planes(mixes @ pixels.transpose(1, 2), MASKS, self.grid)
