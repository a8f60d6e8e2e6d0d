"""Rounds of interactive refinement: look at the answer, click where it is wrong, ask again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PIXELS_PER_LOGIT = 4
_SURE = 8.0
"""Logit of a binary mask that was turned into a mask prompt."""


def correction(logits: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """A click in the largest mistake: ``[Q,s,s]`` each, to ``[Q,1,2]`` pixels and ``[Q,1]`` labels.

    Half of the clicks go to the middle of the widest error, the others anywhere in it. A perfect
    mask gets an ignored point.
    """
    wrong = ((logits > 0) != (goal > 0.5)).float()
    width = functional.avg_pool2d(wrong.unsqueeze(1), 9, 1, 4).squeeze(1)
    noise = torch.where(torch.rand(len(wrong), 1, 1, device=wrong.device) < 0.5, 0.01, 1.0)
    score = wrong * (0.05 + width) * torch.exp(noise * torch.rand_like(wrong))
    best = score.flatten(1).argmax(1)
    row, column = best // wrong.shape[2], best % wrong.shape[2]
    coords = (torch.stack([column, row], 1).float() + 0.5) * PIXELS_PER_LOGIT
    label = goal.flatten(1).gather(1, best.unsqueeze(1)).round()
    nothing = wrong.flatten(1).sum(1, keepdim=True) == 0
    return coords.unsqueeze(1), torch.where(nothing, -1.0, label)


def feedback(logits: Tensor, target_iou: Tensor) -> Tensor:
    """Choose what is fed back ``[Q,s,s]`` from ``[Q,4,s,s]``: token 0, or the best of all.

    A fifth is made binary, as masks painted by a user are.
    """
    count = len(logits)
    device = logits.device
    token = torch.where(torch.rand(count, device=device) < 0.5, 0, target_iou.argmax(1))
    chosen = logits[torch.arange(count, device=device), token].detach().float()
    binary = torch.where(chosen > 0, _SURE, -_SURE)
    return torch.where(torch.rand(count, 1, 1, device=device) < 0.2, binary, chosen)


def forget_points(labels: Tensor, masks: int) -> Tensor:
    """Drop all points of some of the first ``masks`` prompts: ``[B,P,N]`` labels in and out."""
    forget = torch.rand(labels.shape[:2], device=labels.device) < 0.15
    forget[:, masks:] = False
    return torch.where(forget.unsqueeze(2), -1.0, labels)
