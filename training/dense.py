"""What the embedding should know about every pixel, asked directly. Only training uses it.

Prompts tell the encoder about the dozen objects that they ask for. Two heads tell it about all of
them at next to no cost: where a level's outlines are, and which cells belong together. The latter
goes through the decoder's own keys and queries, as a click does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.decoder import COSINE_GAIN, HEAD_WIDTH, HEADS, SUBCELLS, MaskDecoder
from training.encoder import EMBEDDING_CHANNELS

LEVELS = 3
QUERIES = 48
"""Cells per image whose companions are asked for."""
SUBCELL_SIDE = 4


class DenseHeads(nn.Module):
    """Outlines and companions from an embedding ``[B,256,h,w]``."""

    def __init__(self) -> None:
        super().__init__()
        self.outline = nn.Conv2d(EMBEDDING_CHANNELS, LEVELS * SUBCELLS, 1)
        self.together = nn.Linear(HEADS, LEVELS)
        nn.init.constant_(self.outline.bias, -2.0)  # type: ignore[arg-type]
        nn.init.constant_(self.together.weight, 0.4)
        nn.init.constant_(self.together.bias, -3.0)

    def forward(self, decoder: MaskDecoder, embedding: Tensor, levels: Tensor) -> Tensor:
        """Sum of both losses for ids ``levels`` ``[B,3,4h,4w]`` by level, 0 where nothing is."""
        owners = finest(levels)
        outlines = functional.pixel_shuffle(self.outline(embedding), SUBCELL_SIDE)
        cells = owners[:, :, SUBCELL_SIDE // 2 :: SUBCELL_SIDE, SUBCELL_SIDE // 2 :: SUBCELL_SIDE]
        companions = self._companions(decoder, embedding, cells.flatten(2))
        return balanced(outlines.flatten(2), edges(owners).flatten(2)) + companions

    def _companions(self, decoder: MaskDecoder, embedding: Tensor, cells: Tensor) -> Tensor:
        """Loss of the cosines between some cells and all cells; ``cells`` ``[B,3,hw]``."""
        batch, count = len(cells), cells.shape[2]
        picked = pick(cells[:, -1], QUERIES)
        shape = batch, HEADS, HEAD_WIDTH, count
        key = functional.normalize(decoder.key(embedding).reshape(shape), dim=2)
        query = functional.normalize(decoder.query(embedding).reshape(shape), dim=2)
        place = picked.reshape(batch, 1, 1, -1).expand(-1, HEADS, HEAD_WIDTH, -1)
        cosine = COSINE_GAIN * query.gather(3, place).transpose(2, 3) @ key
        logits = self.together(cosine.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        own = cells.gather(2, picked.unsqueeze(1).expand(-1, LEVELS, -1))
        same = own.unsqueeze(3) == cells.unsqueeze(2)
        return balanced(logits, same)


def finest(levels: Tensor) -> Tensor:
    """Ids ``[B,3,H,W]`` so that where a level has nothing, the coarser level's id stands."""
    coarse, part, subpart = levels.unbind(1)
    part = torch.where(part > 0, part, coarse)
    return torch.stack([coarse, part, torch.where(subpart > 0, subpart, part)], 1)


def edges(owners: Tensor) -> Tensor:
    """Bool ``[B,3,H,W]``: the pixel to the right or below belongs to something else."""
    padded = functional.pad(owners.float(), (0, 1, 0, 1), mode="replicate")
    here = padded[..., :-1, :-1]
    return (here != padded[..., :-1, 1:]) | (here != padded[..., 1:, :-1])


def pick(cells: Tensor, count: int) -> Tensor:
    """Indices ``[B,count]`` of random cells ``[B,n]``; something small gets more than its share."""
    rows = []
    for ids in cells:
        _, place, areas = torch.unique(ids, return_inverse=True, return_counts=True)
        weight = areas[place].float().rsqrt() * (ids > 0)
        rows.append(torch.multinomial(weight + 1e-6, count, replacement=True))
    return torch.stack(rows)


def balanced(logits: Tensor, goal: Tensor) -> Tensor:
    """Cross-entropy over the last axis, divided by the area of the goal, as masks have it."""
    logits, goal = logits.float(), goal.float()
    entropy = functional.binary_cross_entropy_with_logits(logits, goal, reduction="none").sum(-1)
    return (entropy / (0.1 * goal.shape[-1] + goal.sum(-1))).mean()
