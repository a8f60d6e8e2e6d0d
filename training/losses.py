"""Losses of ambiguous prompts.

A prompt may mean up to three nested things (object, part, subpart). Token 0 learns the one that
was meant; tokens 1..3 share the valid meanings among themselves. Shapes: Q prompts, masks
``[Q,3,s,s]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional

KEEP_ALIVE = 0.15
"""Weight of each token's nearest meaning, so that no token is left without a use."""
IOU_WEIGHT = 2.0
ABSOLUTE = 0.4
"""Weight of the absolute error of predicted IoUs beside the square."""
_ASSIGNMENTS = tuple(permutations((1, 2, 3)))
"""Token of each level, all six ways."""
_IMPOSSIBLE = 1e4


@dataclass
class Meanings:
    """Float ``masks`` ``[Q,3,s,s]``, bool ``valid`` ``[Q,3]``, int64 ``target`` level ``[Q]``."""

    masks: Tensor
    valid: Tensor
    target: Tensor


@dataclass
class Result:
    """The loss to minimise and IoUs ``[Q,4]``: with the nearest valid meaning, with the target."""

    loss: Tensor
    iou: Tensor
    target_iou: Tensor


def mask_costs(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy plus dice of each of 4 tokens against each of 3 levels: ``[Q,4,3]``.

    Both are linear in the target, so that matmuls replace twelve passes over the pixels.
    """
    flat, goal = logits.flatten(2), masks.flatten(2).transpose(1, 2)
    area = masks.sum((2, 3)).unsqueeze(1)
    entropy = functional.softplus(flat).sum(2, keepdim=True) - flat @ goal
    # Divided by the area too: small objects would vanish beside their background.
    entropy = entropy / (0.1 * flat.shape[2] + area)
    chance = torch.sigmoid(flat)
    overlap = 2 * (chance @ goal) + 1
    dice = 1 - overlap / (chance.sum(2, keepdim=True) + area + 1)
    return entropy + dice


def true_iou(logits: Tensor, masks: Tensor) -> Tensor:
    """IoU of each thresholded token with each level: ``[Q,4,3]``."""
    chosen, goal = (logits > 0).float().flatten(2), masks.flatten(2).transpose(1, 2)
    common = chosen @ goal
    union = chosen.sum(2, keepdim=True) + goal.sum(1, keepdim=True) - common
    return common / union.clamp(min=1)


def ambiguity_loss(costs: Tensor, valid: Tensor) -> Tensor:
    """Best assignment of tokens 1..3 to the valid levels: ``[Q]``."""
    weight = valid.float()
    ways = [
        sum(weight[:, level] * costs[:, token, level] for level, token in enumerate(way))
        for way in _ASSIGNMENTS
    ]
    shared = torch.stack([torch.as_tensor(way) for way in ways], 1).amin(1) / weight.sum(1)
    nearest = (costs[:, 1:] + _IMPOSSIBLE * (1 - weight).unsqueeze(1)).amin(2)
    return shared + KEEP_ALIVE * nearest.sum(1)


def prompt_loss(logits: Tensor, predicted_iou: Tensor, meanings: Meanings) -> Result:
    """Total over tokens for ``logits`` ``[Q,4,s,s]`` and ``predicted_iou`` ``[Q,4]``."""
    logits = logits.float()
    costs = mask_costs(logits, meanings.masks)
    single = costs[torch.arange(len(logits), device=logits.device), 0, meanings.target]
    known = iou_loss(logits, predicted_iou, meanings)
    loss = single + ambiguity_loss(costs, meanings.valid) + IOU_WEIGHT * known.loss
    return Result(loss.mean(), known.iou, known.target_iou)


def iou_loss(
    logits: Tensor, predicted_iou: Tensor, meanings: Meanings, absolute: float = ABSOLUTE
) -> Result:
    """Error of the predicted IoUs alone, by prompt: ``loss`` ``[Q]``."""
    index = torch.arange(len(logits), device=logits.device)
    with torch.no_grad():
        iou = true_iou(logits.float(), meanings.masks)
        best = (iou * meanings.valid.unsqueeze(1)).amax(2)
    error = predicted_iou.float() - best
    regression = (error.square() + absolute * error.abs()).sum(1)
    return Result(regression, best, iou[index, :, meanings.target])
