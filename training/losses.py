"""Losses of ambiguous prompts.

A prompt may be valid for up to three nested levels (object, part, subpart). Token 0 learns the
target; tokens 1..3 are assigned to the valid levels. Shapes: Q prompts, masks
``[Q,3,s,s]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional

NEAREST_WEIGHT = 0.15
"""Weight of each token's nearest level, so that every token is trained."""
IOU_WEIGHT = 2.0
ABSOLUTE = 0.4
"""Weight of the absolute error of predicted IoUs, relative to the squared error."""
_ASSIGNMENTS = tuple(permutations((1, 2, 3)))
"""Token of each level, all six permutations."""
_IMPOSSIBLE = 1e4


@dataclass
class ValidLevels:
    """Float ``masks`` ``[Q,3,s,s]``, bool ``valid`` ``[Q,3]``, int64 ``target`` level ``[Q]``."""

    masks: Tensor
    valid: Tensor
    target: Tensor


@dataclass
class Result:
    """The loss to minimise and IoUs ``[Q,4]`` with the nearest valid level and with the target."""

    loss: Tensor
    iou: Tensor
    target_iou: Tensor


def mask_costs(logits: Tensor, masks: Tensor) -> Tensor:
    """Return cross-entropy plus dice of each of 4 tokens against each of 3 levels: ``[Q,4,3]``.

    Both are linear in the target, so that matmuls replace twelve passes over the pixels.
    """
    flat, goal = logits.flatten(2), masks.flatten(2).transpose(1, 2)
    area = masks.sum((2, 3)).unsqueeze(1)
    entropy = functional.softplus(flat).sum(2, keepdim=True) - flat @ goal
    # Divided by the area too: otherwise small objects have almost no weight.
    entropy = entropy / (0.1 * flat.shape[2] + area)
    probability = torch.sigmoid(flat)
    overlap = 2 * (probability @ goal) + 1
    dice = 1 - overlap / (probability.sum(2, keepdim=True) + area + 1)
    return entropy + dice


def true_iou(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the IoU of each thresholded token with each level: ``[Q,4,3]``."""
    chosen, goal = (logits > 0).float().flatten(2), masks.flatten(2).transpose(1, 2)
    common = chosen @ goal
    union = chosen.sum(2, keepdim=True) + goal.sum(1, keepdim=True) - common
    return common / union.clamp(min=1)


def ambiguity_loss(costs: Tensor, valid: Tensor) -> Tensor:
    """Return the cost of the best assignment of tokens 1..3 to the valid levels: ``[Q]``."""
    weight = valid.float()
    totals = [
        sum(weight[:, level] * costs[:, token, level] for level, token in enumerate(assignment))
        for assignment in _ASSIGNMENTS
    ]
    shared = torch.stack([torch.as_tensor(assignment) for assignment in totals], 1).amin(
        1
    ) / weight.sum(1)
    nearest = (costs[:, 1:] + _IMPOSSIBLE * (1 - weight).unsqueeze(1)).amin(2)
    return shared + NEAREST_WEIGHT * nearest.sum(1)


def prompt_loss(logits: Tensor, predicted_iou: Tensor, levels: ValidLevels) -> Result:
    """Return the total loss of ``logits`` ``[Q,4,s,s]`` and ``predicted_iou`` ``[Q,4]``."""
    logits = logits.float()
    costs = mask_costs(logits, levels.masks)
    single = costs[torch.arange(len(logits), device=logits.device), 0, levels.target]
    iou_result = iou_loss(logits, predicted_iou, levels)
    loss = single + ambiguity_loss(costs, levels.valid) + IOU_WEIGHT * iou_result.loss
    return Result(loss.mean(), iou_result.iou, iou_result.target_iou)


def iou_loss(
    logits: Tensor, predicted_iou: Tensor, levels: ValidLevels, absolute: float = ABSOLUTE
) -> Result:
    """Return the error of the predicted IoUs only, per prompt: ``loss`` ``[Q]``."""
    index = torch.arange(len(logits), device=logits.device)
    with torch.no_grad():
        iou = true_iou(logits.float(), levels.masks)
        best = (iou * levels.valid.unsqueeze(1)).amax(2)
    error = predicted_iou.float() - best
    regression = (error.square() + absolute * error.abs()).sum(1)
    return Result(regression, best, iou[index, :, levels.target])
