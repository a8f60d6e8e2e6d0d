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

_ASSIGNMENTS = tuple(permutations((1, 2, 3)))
"""Token of each level, all six permutations."""
_IMPOSSIBLE = 1e4
PLAIN_TOKENS = 4
"""Mask tokens of all families; SAM-HQ has one more."""


@dataclass(frozen=True)
class Recipe:
    """Weights of the losses.

    The loss of a mask is ``pixel`` times the loss of its pixels plus its dice loss.  That of pixels
    is focal, with the exponent ``gamma`` and the weight ``alpha`` of the foreground: 0 and None are
    cross-entropy.  It is the mean over the pixels, or, with ``by_area``, the sum divided by the
    area of the object and a tenth of the frame: otherwise small objects have almost no weight.
    ``nearest`` is the weight of each token's nearest level, so that every token is trained.
    ``iou`` is the weight of the squared errors of the predicted IoU, and ``absolute`` that of the
    absolute errors relative to it.
    """

    pixel: float
    gamma: float
    alpha: float | None
    by_area: bool
    nearest: float
    iou: float
    absolute: float


TINY = Recipe(pixel=1.0, gamma=0.0, alpha=None, by_area=True, nearest=0.15, iou=2.0, absolute=0.4)
"""That of `sam_tiny`."""
PAPER = Recipe(pixel=20.0, gamma=2.0, alpha=0.25, by_area=False, nearest=0.0, iou=1.0, absolute=0.0)
"""That of SAM: focal and dice loss 20:1, the squared error of the predicted IoU, and of the three
tokens for an ambiguous prompt only the best (Kirillov et al., "Segment Anything", appendix A)."""


@dataclass
class ValidLevels:
    """Float ``masks`` ``[Q,3,s,s]``, bool ``valid`` ``[Q,3]``, int64 ``target`` level ``[Q]``.

    ``weight`` float ``[Q]`` is that of each prompt in the loss; None for equal ones.
    """

    masks: Tensor
    valid: Tensor
    target: Tensor
    weight: Tensor | None = None


@dataclass
class Result:
    """The loss to minimise and IoUs ``[Q,4]`` with the nearest valid level and with the target."""

    loss: Tensor
    iou: Tensor
    target_iou: Tensor


def mask_costs(logits: Tensor, masks: Tensor, recipe: Recipe = TINY) -> Tensor:
    """Return the loss of each of T tokens against each of 3 levels: ``[Q,T,3]``.

    All parts are linear in the target, so that matmuls replace passes over the pixels.
    """
    flat, goal = logits.flatten(2), masks.flatten(2).transpose(1, 2)
    area = masks.sum((2, 3)).unsqueeze(1)
    background, difference = _pixel_losses(flat, recipe)
    pixels = background.sum(2, keepdim=True) - difference @ goal
    pixels = pixels / (0.1 * flat.shape[2] + area if recipe.by_area else flat.shape[2])
    probability = torch.sigmoid(flat)
    overlap = 2 * (probability @ goal) + 1
    dice = 1 - overlap / (probability.sum(2, keepdim=True) + area + 1)
    return recipe.pixel * pixels + dice


def _pixel_losses(flat: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Return the loss of each pixel as background, and how much less it is as foreground."""
    if not recipe.gamma and recipe.alpha is None:
        return functional.softplus(flat), flat
    probability = torch.sigmoid(flat)
    alpha = 0.5 if recipe.alpha is None else recipe.alpha
    background = (1 - alpha) * probability**recipe.gamma * functional.softplus(flat)
    foreground = alpha * (1 - probability) ** recipe.gamma * functional.softplus(-flat)
    return background, background - foreground


def true_iou(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the IoU of each thresholded token with each level: ``[Q,4,3]``."""
    chosen, goal = (logits > 0).float().flatten(2), masks.flatten(2).transpose(1, 2)
    common = chosen @ goal
    union = chosen.sum(2, keepdim=True) + goal.sum(1, keepdim=True) - common
    return common / union.clamp(min=1)


def ambiguity_loss(costs: Tensor, valid: Tensor, recipe: Recipe = TINY) -> Tensor:
    """Return the cost of the best assignment of tokens 1..3 to the valid levels: ``[Q]``."""
    weight = valid.float()
    totals = [
        sum(weight[:, level] * costs[:, token, level] for level, token in enumerate(assignment))
        for assignment in _ASSIGNMENTS
    ]
    shared = torch.stack([torch.as_tensor(assignment) for assignment in totals], 1).amin(
        1
    ) / weight.sum(1)
    nearest = (costs[:, 1:4] + _IMPOSSIBLE * (1 - weight).unsqueeze(1)).amin(2)
    return shared + recipe.nearest * nearest.sum(1)


def prompt_loss(
    logits: Tensor, predicted_iou: Tensor, levels: ValidLevels, recipe: Recipe = TINY
) -> Result:
    """Return the total loss of ``logits`` ``[Q,T,s,s]`` and ``predicted_iou`` ``[Q,T]``.

    T is 4, or 5 with the token of SAM-HQ, whose IoU is not predicted.
    """
    logits = logits.float()
    costs = mask_costs(logits, levels.masks, recipe)
    index = torch.arange(len(logits), device=logits.device)
    loss = costs[index, 0, levels.target] + ambiguity_loss(costs, levels.valid, recipe)
    for token in range(PLAIN_TOKENS, logits.shape[1]):
        loss = loss + costs[index, token, levels.target]
    plain = logits[:, :PLAIN_TOKENS], predicted_iou[:, :PLAIN_TOKENS]
    iou_result = iou_loss(*plain, levels, recipe.absolute)
    loss = loss + recipe.iou * iou_result.loss
    mean = loss.mean() if levels.weight is None else (levels.weight * loss).mean()
    return Result(mean, iou_result.iou, iou_result.target_iou)


def iou_loss(
    logits: Tensor, predicted_iou: Tensor, levels: ValidLevels, absolute: float = TINY.absolute
) -> Result:
    """Return the error of the predicted IoUs only, per prompt: ``loss`` ``[Q]``."""
    index = torch.arange(len(logits), device=logits.device)
    with torch.no_grad():
        iou = true_iou(logits.float(), levels.masks)
        best = (iou * levels.valid.unsqueeze(1)).amax(2)
    error = predicted_iou.float() - best
    regression = (error.square() + absolute * error.abs()).sum(1)
    return Result(regression, best, iou[index, :, levels.target])
