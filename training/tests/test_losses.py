"""Losses compared with their definitions."""

from __future__ import annotations

import torch
from samserve.tuning.corrections import correction
from samserve.tuning.losses import ValidLevels, ambiguity_loss, mask_costs, prompt_loss, true_iou
from torch.nn import functional


def test_costs_match_their_definition() -> None:
    torch.manual_seed(0)
    logits, masks = 3 * torch.randn(2, 4, 8, 8), (torch.rand(2, 3, 8, 8) < 0.3).float()
    costs = mask_costs(logits, masks)
    one, goal = logits[1, 2], masks[1, 0]
    entropy = functional.binary_cross_entropy_with_logits(one, goal, reduction="sum")
    probability = one.sigmoid()
    dice = 1 - (2 * (probability * goal).sum() + 1) / (probability.sum() + goal.sum() + 1)
    expected = entropy / (0.1 * 64 + goal.sum()) + dice
    torch.testing.assert_close(costs[1, 2, 0], expected)


def test_iou_of_halves() -> None:
    logits = torch.full((1, 4, 4, 4), -1.0)
    logits[0, 0, :2] = 1
    masks = torch.zeros(1, 3, 4, 4)
    masks[0, 0, 1:] = 1
    assert true_iou(logits, masks)[0, 0].tolist() == [0.25, 0.0, 0.0]


def test_each_level_is_assigned_to_a_separate_token() -> None:
    costs = torch.full((1, 4, 3), 9.0)
    costs[0, 1, :2] = torch.tensor([0.0, 1.0])
    costs[0, 3, 1] = 2.0
    both = ambiguity_loss(costs, torch.tensor([[True, True, False]]))
    # Token 1 is best for both levels but is assigned to only one.
    nearest = 0.15 * (0.0 + 9.0 + 2.0)
    torch.testing.assert_close(both, torch.tensor([(0.0 + 2.0) / 2 + nearest]))


def test_perfect_masks_have_a_small_loss_and_wrong_ones_gradients() -> None:
    masks = torch.zeros(1, 3, 16, 16)
    masks[0, 0, 4:12, 4:12] = 1
    levels = ValidLevels(masks, torch.tensor([[True, False, False]]), torch.tensor([0]))
    logits = (20 * (masks[:, :1] - 0.5)).expand(1, 4, 16, 16).clone().requires_grad_()
    perfect = prompt_loss(logits, torch.ones(1, 4), levels)
    wrong = prompt_loss(-logits, torch.ones(1, 4), levels)
    assert perfect.loss.detach().item() < 0.05 < wrong.loss.detach().item()
    assert perfect.iou.tolist() == [[1.0, 1.0, 1.0, 1.0]]
    wrong.loss.backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_corrections_are_points_in_the_error() -> None:
    goal = torch.zeros(1, 32, 32)
    goal[0, 8:24, 8:24] = 1
    coords, label = correction(torch.full((1, 32, 32), -1.0), goal)
    x, y = coords[0, 0].tolist()
    assert 32 <= x <= 96
    assert 32 <= y <= 96
    assert label.item() == 1
    _, padding_label = correction(goal - 0.5, goal)
    assert padding_label.item() == -1
