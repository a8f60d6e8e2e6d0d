"""Corrections for interactive refinement: a point in the error, and the logits as mask prompt."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PIXELS_PER_LOGIT = 4
_BINARY_LOGIT = 8.0
"""Logit of a binary mask as mask prompt."""


def correction(logits: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """Return a point in the widest error: coords ``[Q,1,2]`` in pixels and labels ``[Q,1]``.

    *logits* and *goal* are ``[Q,s,s]``. Half of the points are at the centre of the widest error,
    the others anywhere in it. A perfect mask gets an ignored point.
    """
    wrong = ((logits > 0) != (goal > 0.5)).float()
    width = functional.avg_pool2d(wrong.unsqueeze(1), 9, 1, 4).squeeze(1)
    noise = torch.where(torch.rand(len(wrong), 1, 1, device=wrong.device) < 0.5, 0.01, 1.0)
    score = wrong * (0.05 + width) * torch.exp(noise * torch.rand_like(wrong))
    best = score.flatten(1).argmax(1)
    row, column = best // wrong.shape[2], best % wrong.shape[2]
    coords = (torch.stack([column, row], 1).float() + 0.5) * PIXELS_PER_LOGIT
    label = goal.flatten(1).gather(1, best.unsqueeze(1)).round()
    perfect = wrong.flatten(1).sum(1, keepdim=True) == 0
    return coords.unsqueeze(1), torch.where(perfect, -1.0, label)


def feedback(logits: Tensor, target_iou: Tensor) -> Tensor:
    """Return the mask prompts ``[Q,s,s]`` from ``[Q,4,s,s]``: those of token 0 or the best token.

    A fifth is binary, like masks that a user paints.
    """
    count = len(logits)
    device = logits.device
    token = torch.where(torch.rand(count, device=device) < 0.5, 0, target_iou.argmax(1))
    chosen = logits[torch.arange(count, device=device), token].detach().float()
    binary = torch.where(chosen > 0, _BINARY_LOGIT, -_BINARY_LOGIT)
    return torch.where(torch.rand(count, 1, 1, device=device) < 0.2, binary, chosen)


def drop_points(labels: Tensor, masks: int, probability: float) -> Tensor:
    """Drop all points of some of the first ``masks`` prompts; labels are ``[B,P,N]``."""
    dropped = torch.rand(labels.shape[:2], device=labels.device) < probability
    dropped[:, masks:] = False
    return torch.where(dropped.unsqueeze(2), -1.0, labels)
