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

from samserve.export.decoder.mask_prompts import dense_cells
from samserve.export.decoder.two_way import TwoWayTransformer
from samserve.export.pixels import PIXEL_MEAN, PIXEL_STD

_NAMES = {
    "o_proj": "out_proj",
    "layer_norm": "norm",
    "mlp.proj_in": "mlp.lin1",
    "mlp.proj_out": "mlp.lin2",
}
"""Tensors of the two-way transformer: names of the library, and own ones."""

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
        position = torch.where(label == LABELS[0], torch.zeros(()), position)
        # An index would fix P and N in the traced graph; a product with one-hot rows does not.
        return position + (label == self.labels).to(position.dtype) @ self.kinds

    def embed_masks(self, masks: Tensor, prompts: int) -> Tensor:
        """Return what is added to the cells of P prompts, ``[B,G,K,C]``; see `dense_cells`."""
        return dense_cells(masks, prompts, self.masks, self.no_mask.weight)


def two_way(transformer: Any) -> TwoWayTransformer:
    """Return the two-way transformer of the library as that of `samserve.export.decoder`."""
    state = {_own_name(name): value for name, value in transformer.state_dict().items()}
    width, mlp_width = state["norm_final_attn.weight"].shape[0], state["layers.0.mlp.lin1.bias"]
    with torch.device("meta"):
        own = TwoWayTransformer(width, mlp_width.shape[0], len(transformer.layers))
    own.load_state_dict(state, strict=True, assign=True)
    return own.eval().requires_grad_(False)


def _own_name(name: str) -> str:
    for theirs, own in _NAMES.items():
        name = name.replace(theirs, own)
    return name
