"""SAM's prompt encoder, for P prompts on each of B images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from samserve.export.decoder.mask_prompts import dense_cells
from samserve.export.sam.config import SamConfig
from samserve.export.sam.layers import LayerNorm2d

LABELS = (-1.0, 0.0, 1.0, 2.0, 3.0)
"""Point labels: padding, background, foreground, a box's top-left and bottom-right corner."""


class PromptEncoder(nn.Module):
    """Points and mask inputs to sparse and dense embeddings."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.image_size, self.grid = config.image_size, config.grid
        self.pe_layer = PositionEncoding(config.channels)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, config.channels) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, config.channels)
        few, many = config.mask_channels // 4, config.mask_channels
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, few, 2, stride=2),
            LayerNorm2d(few),
            nn.GELU(),
            nn.Conv2d(few, many, 2, stride=2),
            LayerNorm2d(many),
            nn.GELU(),
            nn.Conv2d(many, config.channels, 1),
        )
        self.no_mask_embed = nn.Embedding(1, config.channels)

    def embed_points(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Return sparse embeddings ``[B,P,N,256]``.

        ``coords`` float32 ``[B,P,N,2]`` in model pixels, before the half pixel is added that moves
        them to the pixel's centre; ``labels`` float32 ``[B,P,N]`` as in ``LABELS``.
        """
        position = self.pe_layer((coords + 0.5) / self.image_size)
        label = labels.unsqueeze(3)
        position = torch.where(label == LABELS[0], torch.zeros(()), position)
        embeddings = [self.not_a_point_embed, *self.point_embeddings]
        kinds = torch.cat([embedding.weight for embedding in embeddings])
        # Indexed addition would fix P and N in a traced graph; a one-hot product is equivalent.
        chosen = (label == torch.tensor(LABELS)).to(position.dtype)
        return position + chosen @ kinds

    def embed_masks(self, masks: Tensor, prompts: int) -> Tensor:
        """Return dense embeddings ``[B,G,K,256]``; the first M of the P prompts have masks.

        ``masks`` float32 ``[B,M,4*grid,4*grid]`` low-res logits, with M from 0 to P.  G is 1
        without masks, else P.
        """
        return dense_cells(masks, prompts, self.mask_downscaling, self.no_mask_embed.weight)

    def dense_positions(self) -> Tensor:
        """Return the position encoding of the cells: ``[1,grid*grid,256]``, row by row."""
        centres = (torch.ones(self.grid).cumsum(0) - 0.5) / self.grid
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        # Term by term: these values become constants of the model, and the order of the additions
        # in a matrix product depends on the processor.
        along_x, along_y = self.pe_layer.positional_encoding_gaussian_matrix.unsqueeze(1)
        waves = (2 * columns - 1).unsqueeze(2) * along_x + (2 * rows - 1).unsqueeze(2) * along_y
        return self.pe_layer.encoded(waves).reshape(1, self.grid * self.grid, -1)


class PositionEncoding(nn.Module):
    """Random Fourier features of positions in the unit square."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The name is that of the checkpoints.
        self.register_buffer("positional_encoding_gaussian_matrix", torch.zeros(2, channels // 2))

    def forward(self, positions: Tensor) -> Tensor:
        """Encode ``[...,2]`` (x, y) in 0..1 as ``[...,channels]``."""
        return self.encoded((2 * positions - 1) @ self.positional_encoding_gaussian_matrix)

    def encoded(self, waves: Tensor) -> Tensor:
        """Turn ``[...,channels/2]`` waves into their sines and cosines."""
        angles = 2 * math.pi * waves
        return torch.cat([torch.sin(angles), torch.cos(angles)], -1)
