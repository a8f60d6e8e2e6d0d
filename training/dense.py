"""Dense auxiliary losses on the embedding, used only in training.

Prompts train the encoder only on the dozen objects that they select. Two heads train it on all
objects at almost no cost: on the outlines of each level, and on which cells belong to the same
object. The latter uses the decoder's own keys and queries, as a point prompt does.
"""

from __future__ import annotations

import torch
from samserve.export.tiny.decoder import COSINE_GAIN, HEAD_WIDTH, HEADS, SUBCELLS, MaskDecoder
from samserve.export.tiny.layers import EMBEDDING_CHANNELS
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 3
QUERIES = 48
"""Cells per image that are compared with all cells."""
SUBCELL_SIDE = 4


class DenseHeads(nn.Module):
    """Predicts outlines and cells of the same object from an embedding ``[B,256,h,w]``."""

    def __init__(self) -> None:
        super().__init__()
        self.outline = nn.Conv2d(EMBEDDING_CHANNELS, LEVELS * SUBCELLS, 1)
        self.together = nn.Linear(HEADS, LEVELS)
        nn.init.constant_(self.outline.bias, -2.0)  # type: ignore[arg-type]
        nn.init.constant_(self.together.weight, 0.4)
        nn.init.constant_(self.together.bias, -3.0)

    def forward(self, decoder: MaskDecoder, embedding: Tensor, levels: Tensor) -> Tensor:
        """Return the sum of both losses; ids ``levels`` ``[B,3,4h,4w]`` by level are 0 for none."""
        owners = finest(levels)
        outlines = functional.pixel_shuffle(self.outline(embedding), SUBCELL_SIDE)
        cells = owners[:, :, SUBCELL_SIDE // 2 :: SUBCELL_SIDE, SUBCELL_SIDE // 2 :: SUBCELL_SIDE]
        same_object = self._same_object_loss(decoder, embedding, cells.flatten(2))
        return balanced(outlines.flatten(2), edges(owners).flatten(2)) + same_object

    def _same_object_loss(self, decoder: MaskDecoder, embedding: Tensor, cells: Tensor) -> Tensor:
        """Return the loss of cosines between some cells and all; ids ``cells`` are ``[B,3,hw]``."""
        batch, count = len(cells), cells.shape[2]
        picked = pick(cells[:, -1], QUERIES)
        shape = batch, HEADS, HEAD_WIDTH, count
        key = functional.normalize(decoder.key(embedding).reshape(shape), dim=2)
        query = functional.normalize(decoder.query(embedding).reshape(shape), dim=2)
        index = picked.reshape(batch, 1, 1, -1).expand(-1, HEADS, HEAD_WIDTH, -1)
        cosine = COSINE_GAIN * query.gather(3, index).transpose(2, 3) @ key
        logits = self.together(cosine.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        own = cells.gather(2, picked.unsqueeze(1).expand(-1, LEVELS, -1))
        same = own.unsqueeze(3) == cells.unsqueeze(2)
        return balanced(logits, same)


def finest(levels: Tensor) -> Tensor:
    """Return ids ``[B,3,H,W]`` in which a level without an id has that of the coarser level."""
    coarse, part, subpart = levels.unbind(1)
    part = torch.where(part > 0, part, coarse)
    return torch.stack([coarse, part, torch.where(subpart > 0, subpart, part)], 1)


def edges(owners: Tensor) -> Tensor:
    """Return bool ``[B,3,H,W]``: the pixel to the right or below has another id."""
    padded = functional.pad(owners.float(), (0, 1, 0, 1), mode="replicate")
    here = padded[..., :-1, :-1]
    return (here != padded[..., :-1, 1:]) | (here != padded[..., 1:, :-1])


def pick(cells: Tensor, count: int) -> Tensor:
    """Return indices ``[B,count]`` of random cells ``[B,n]``; small objects are oversampled."""
    rows = []
    for ids in cells:
        _, index, areas = torch.unique(ids, return_inverse=True, return_counts=True)
        weight = areas[index].float().rsqrt() * (ids > 0)
        rows.append(torch.multinomial(weight + 1e-6, count, replacement=True))
    return torch.stack(rows)


def balanced(logits: Tensor, goal: Tensor) -> Tensor:
    """Return the cross-entropy over the last axis, divided by the goal's area as for masks."""
    logits, goal = logits.float(), goal.float()
    entropy = functional.binary_cross_entropy_with_logits(logits, goal, reduction="none").sum(-1)
    return (entropy / (0.1 * goal.shape[-1] + goal.sum(-1))).mean()
