"""The exported decoder of `sam_tiny`."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from samserve.export.onnx_export import Axes, Interface, trace
from samserve.export.onnx_file import serialized
from samserve.export.tiny.decoder import MaskDecoder
from samserve.export.tiny.folded_decoder import FoldedDecoder
from samserve.export.tiny.iou import TOKENS
from samserve.export.tiny.layers import CELL, EMBEDDING_CHANNELS
from samserve.export.tiny.shapes import declare_batches

SIDE = 1024
GRID = SIDE // CELL
EMBEDDING: dict[str, Axes] = {"image_embedding": ("B", EMBEDDING_CHANNELS, GRID, GRID)}
LOGIT_SCALE = 5.0
"""Served logits are the trained ones times this factor, which changes no mask. On held-out scenes,
95 % of the masks with an IoU above 0.85 then pass AutoMask's default threshold of stability, and a
quarter of those below 0.6; with a factor of 2 it is 74 % and a sixth."""


class ServedDecoder(nn.Module):
    """The decoder as served, with half-precision embeddings and scaled logits."""

    def __init__(self, decoder: MaskDecoder | FoldedDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        image_embedding: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decode as ``MaskDecoder.forward``; ``mask_input`` is an earlier output of this graph."""
        logits, iou = self.decoder(
            image_embedding.float(), point_coords, point_labels, mask_input / LOGIT_SCALE
        )
        return logits * LOGIT_SCALE, iou


def decoder_onnx(decoder: MaskDecoder) -> bytes:
    """Export the decoder in its folded form, with dynamic B, P, N and M."""
    side = 4 * GRID
    # All sizes differ, so that the trace cannot confuse them.
    examples = (
        torch.zeros(2, 256, GRID, GRID, dtype=torch.float16),
        torch.rand(2, 5, 3, 2) * SIDE,
        torch.tensor([1.0, 0.0, -1.0]).expand(2, 5, 3).contiguous(),
        torch.zeros(2, 4, side, side),
    )
    interface = Interface(
        {
            **EMBEDDING,
            "point_coords": ("B", "P", "N", 2),
            "point_labels": ("B", "P", "N"),
            "mask_input": ("B", "M", side, side),
        },
        {"low_res_logits": ("B", "P", TOKENS, side, side), "predicted_iou": ("B", "P", TOKENS)},
    )
    with warnings.catch_warnings():
        # The folded norm is within a prompt: it has no other statistics than those of its input.
        warnings.filterwarnings(
            "ignore", message="ONNX export mode is set to", category=UserWarning
        )
        graph = trace(ServedDecoder(FoldedDecoder(decoder)), examples, interface)
    return serialized(declare_batches(graph))
