"""The losses of SAM's recipe."""

from __future__ import annotations

import torch
from samserve.tuning.losses import PAPER, TINY, ValidLevels, mask_costs, prompt_loss
from torch.nn import functional


def test_pixels_are_weighed_as_by_the_focal_loss() -> None:
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 4, 8, 8), (torch.rand(2, 3, 8, 8) > 0.6).float()

    costs = mask_costs(logits, masks, PAPER)

    for token, level in ((0, 0), (3, 2)):
        one, goal = logits[1, token], masks[1, level]
        probability = torch.sigmoid(one)
        entropy = functional.binary_cross_entropy_with_logits(one, goal, reduction="none")
        right = probability * goal + (1 - probability) * (1 - goal)
        alpha = 0.25 * goal + 0.75 * (1 - goal)
        focal = (alpha * (1 - right) ** 2 * entropy).mean()
        dice = 1 - (2 * (probability * goal).sum() + 1) / (probability.sum() + goal.sum() + 1)
        torch.testing.assert_close(costs[1, token, level], 20 * focal + dice)


def test_a_prompt_without_weight_has_no_effect() -> None:
    torch.manual_seed(0)
    logits, iou = torch.randn(2, 4, 8, 8), torch.rand(2, 4)
    masks = (torch.rand(2, 3, 8, 8) > 0.6).float()
    valid, target = torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, dtype=torch.int64)
    for recipe in (TINY, PAPER):
        weighed = ValidLevels(masks, valid, target, torch.tensor([2.0, 0.0]))
        first = ValidLevels(masks[:1], valid[:1], target[:1])

        both = prompt_loss(logits, iou, weighed, recipe).loss

        torch.testing.assert_close(both, prompt_loss(logits[:1], iou[:1], first, recipe).loss)
