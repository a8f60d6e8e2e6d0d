"""The parts of SAM 2's exported graphs, on modules of the transformers library.

The library's own `forward` takes one mask per image and returns some of the masks.  The graphs
call its modules directly: every prompt may have a mask, and all masks are returned.  A prompt of
an image is one row n of the library's batch, with the single prompt that its modules expect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samserve.export.families.base import PIXEL_MEAN, PIXEL_STD

LABELS = (-1.0, 0.0, 1.0, 2.0, 3.0)
"""Point labels: padding, background, foreground, a box's top-left and bottom-right corner."""


class Normalise(nn.Module):
    """Images uint8 ``[B,S,S,3]`` to float32 planes ``[B,3,S,S]`` with zero mean."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN))
        self.register_buffer("std", torch.tensor(PIXEL_STD))

    def forward(self, image: Tensor) -> Tensor:
        """Normalise all pixels."""
        return ((image.float() - self.mean) / self.std).permute(0, 3, 1, 2)


class PromptEmbedding(nn.Module):
    """Points and masks to the inputs of the mask decoder."""

    kinds: Tensor
    labels: Tensor

    def __init__(self, prompt_encoder: Any, kinds: Sequence[Tensor], image_size: int) -> None:
        """Embed with a *prompt_encoder* of the library.

        *kinds* are the embeddings ``[1,C]`` of a padding point and of the four other labels.
        """
        super().__init__()
        self.position, self.masks = prompt_encoder.shared_embedding, prompt_encoder.mask_embed
        self.no_mask = prompt_encoder.no_mask_embed
        self.image_size = image_size
        self.register_buffer("kinds", torch.cat(list(kinds)).detach())
        self.register_buffer("labels", torch.tensor(LABELS))

    def embed_points(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Return tokens ``[B,P,N,C]`` of ``[B,P,N,2]`` in model pixels and labels ``[B,P,N]``."""
        position = self.position((coords + 0.5) / self.image_size)
        label = labels.unsqueeze(3)
        position = torch.where(label == LABELS[0], torch.zeros_like(position), position)
        # An index would fix P and N in the traced graph; a product with one-hot rows does not.
        return position + (label == self.labels).to(position.dtype) @ self.kinds

    def embed_masks(self, masks: Tensor, prompts: int) -> Tensor:
        """Return dense embeddings ``[B,P,C,g,g]``; the first M of the P prompts have masks.

        ``masks`` are low-res logits ``[B,M,4*g,4*g]``, with M from 0 to P.
        """
        batch, given, side = masks.shape[0], masks.shape[1], masks.shape[2]
        # ONNX's Reshape interprets a 0 as "keep this axis": an additional mask, removed below,
        # ensures that no input of it has an axis of length 0.
        spare = torch.zeros(1, 1, side, side).expand(batch, 1, side, side)
        every = torch.cat([masks, spare], 1).reshape(-1, 1, side, side)
        dense = self.masks(every)
        shape = (batch, given + 1, *dense.shape[1:])
        none = self.no_mask.weight.reshape(1, 1, -1, 1, 1)
        absent = none.expand(batch, prompts - given, *dense.shape[1:])
        return torch.cat([dense.reshape(shape)[:, :given], absent], 1)


class TwoWayDecoding(nn.Module):
    """The transformer of a mask decoder: the output tokens and cells of every prompt."""

    outputs: Tensor
    positions: Tensor

    def __init__(self, transformer: nn.Module, outputs: Tensor, positions: Tensor) -> None:
        """Decode with *outputs* ``[T,C]`` before a prompt's tokens; *positions* ``[1,C,g,g]``."""
        super().__init__()
        self.transformer = transformer
        self.register_buffer("outputs", outputs.detach())
        self.register_buffer("positions", positions.detach())

    def forward(self, embedding: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Return output tokens ``[n,T,C]`` and planes ``[n,C,g,g]``, one row n per prompt.

        ``embedding`` ``[B,C,g,g]``; ``sparse`` ``[B,P,N,C]`` and ``dense`` ``[B,P,C,g,g]``.
        """
        batch, prompts = sparse.shape[0], sparse.shape[1]
        count, width = self.outputs.shape
        outputs = self.outputs.expand(batch, prompts, count, width)
        # Joined before flattening, so that no axis is empty when there are no points (N = 0).
        tokens = torch.cat([outputs, sparse], 2).flatten(0, 1).unsqueeze(1)
        planes = (embedding.unsqueeze(1) + dense).flatten(0, 1)
        tokens, cells = self.transformer(
            point_embeddings=tokens,
            image_embeddings=planes,
            image_positional_embeddings=self.positions,
            attention_similarity=None,
            target_embedding=None,
        )
        return tokens[:, 0, :count], cells[:, 0].transpose(1, 2).reshape_as(planes)


def mixed(mlps: Sequence[nn.Module], tokens: Tensor, planes: Tensor) -> Tensor:
    """Return masks ``[n,T,h,w]``: each of the tokens ``[n,T,C]`` mixes the planes ``[n,D,h,w]``."""
    mixes = torch.stack([mlp(tokens[:, index]) for index, mlp in enumerate(mlps)], 1)
    height, width = planes.shape[2], planes.shape[3]
    return (mixes @ planes.flatten(2)).reshape(-1, len(mlps), height, width)


def by_prompt(values: Tensor, like: Tensor) -> Tensor:
    """Split rows n into ``[B,P,...]``, the axes of *like*."""
    return values.reshape(like.shape[0], like.shape[1], *values.shape[1:])


def of_image(values: Tensor, planes: Tensor, prompts: Tensor) -> Tensor:
    """Add the features *values* ``[B,D,h,w]`` of images to planes ``[n,D,h,w]`` of prompts."""
    split = by_prompt(planes, prompts)
    return (split + values.unsqueeze(1)).flatten(0, 1)
