"""The image encoder: a small convolutional pyramid merged at stride 16."""

from __future__ import annotations

import torch
from samserve.export.tiny.layers import (
    EMBEDDING_CHANNELS,
    EncoderBlock,
    GlobalAttention,
    conv_bn,
)
from torch import Tensor, nn
from torch.nn import functional

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class ImageEncoder(nn.Module):
    """Embeds images uint8 ``[B,S,S,3]`` of sizes int32 ``[B,2]`` to ``[B,256,S/16,S/16]``."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD), persistent=False)
        self.stem = nn.Sequential(
            conv_bn(3, 24, 3, 2), nn.ReLU(), conv_bn(24, 48, 3, 2), nn.ReLU(), EncoderBlock(48)
        )
        self.stage8 = _stage(48, 96, 2)
        self.stage16 = _stage(96, 128, 3)
        self.stage32 = _stage(128, 144, 2)
        self.stage64 = nn.Sequential(conv_bn(144, 128, 3, 2), nn.ReLU(), GlobalAttention(128))
        self.squeeze4 = conv_bn(48, 16, 1)
        self.squeeze8 = conv_bn(96, 48, 1)
        self.from4 = conv_bn(16 * 16, 128, 1)
        self.from8 = conv_bn(48 * 4, 128, 1)
        self.from16 = conv_bn(128, 128, 1)
        self.from32 = conv_bn(144, 128, 1)
        self.merge = EncoderBlock(128)
        self.project = conv_bn(128, EMBEDDING_CHANNELS, 1)

    def forward(self, image: Tensor, image_size: Tensor) -> Tensor:
        """Embed images of ``image_size`` (h, w) at the top left; the padding may be anything."""
        at4 = self.stem(self.normalise(image, image_size))
        at8 = self.stage8(at4)
        at16 = self.stage16(at8)
        at32 = self.stage32(at16)
        context = functional.interpolate(self.stage64(at32), scale_factor=2.0, mode="nearest")
        coarse = torch.relu(self.from32(at32) + context)
        # Unshuffling keeps sub-cell positions as channels, so that edges are preserved.
        fine4 = functional.pixel_unshuffle(torch.relu(self.squeeze4(at4)), 4)
        fine8 = functional.pixel_unshuffle(torch.relu(self.squeeze8(at8)), 2)
        merged = self.from4(fine4) + self.from8(fine8) + self.from16(at16)
        raised = functional.interpolate(
            coarse, scale_factor=2.0, mode="bilinear", align_corners=False
        )
        embedding: Tensor = self.project(self.merge(torch.relu(merged + raised)))
        return embedding

    def normalise(self, image: Tensor, image_size: Tensor) -> Tensor:
        """Standardise as SAM does, then zero the padding: ``[B,3,S,S]`` float32."""
        rows, columns = image.shape[1], image.shape[2]
        size = image_size.to(torch.int32).reshape(-1, 2, 1, 1, 1)
        below = torch.arange(rows, dtype=torch.int32, device=image.device).reshape(1, rows, 1, 1)
        right = torch.arange(columns, dtype=torch.int32, device=image.device)
        valid = (below < size[:, 0]) & (right.reshape(1, 1, columns, 1) < size[:, 1])
        standard = (image.float() - self.mean) / self.std
        return torch.where(valid, standard, torch.zeros_like(standard)).permute(0, 3, 1, 2)


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    refine = [EncoderBlock(outputs) for _ in range(blocks)]
    return nn.Sequential(conv_bn(inputs, outputs, 3, 2), nn.ReLU(), *refine)
