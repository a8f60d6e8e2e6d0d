"""The losses of SAM's recipe."""

from __future__ import annotations

import torch
from samserve.tuning.decoders import NetworkDecoder
from samserve.tuning.losses import PAPER, TINY, ValidLevels, mask_costs, prompt_loss
from torch import Tensor
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


def test_token_of_sam_hq_learns_the_target() -> None:
    torch.manual_seed(0)
    logits, iou = torch.randn(2, 5, 8, 8), torch.rand(2, 5)
    masks = (torch.rand(2, 3, 8, 8) > 0.6).float()
    levels = ValidLevels(masks, torch.ones(2, 3, dtype=torch.bool), torch.tensor([0, 2]))

    added = (
        prompt_loss(logits, iou, levels, PAPER).loss
        - prompt_loss(logits[:, :4], iou[:, :4], levels, PAPER).loss
    )

    costs = mask_costs(logits, masks, PAPER)
    torch.testing.assert_close(added, (costs[0, 4, 0] + costs[1, 4, 2]) / 2)


class _Constant(NetworkDecoder):
    """A decoder of SAM-HQ without networks."""

    def __init__(self, logits: Tensor, iou: Tensor) -> None:
        self._outputs = logits, iou

    def served(self, *_: object) -> tuple[Tensor, Tensor]:
        """See `NetworkDecoder.served`."""
        return self._outputs


def test_mask_of_sam_hq_is_trained_as_it_is_served_by_default() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 5, 8, 8)
    # Token 0 is not among those from which the best is chosen.
    iou = torch.tensor([[[0.9, 0.1, 0.8, 0.3, 0.0], [0.9, 0.7, 0.2, 0.3, 0.0]]])

    trained, same = _Constant(logits, iou).decode(torch.nn.Identity(), (), (logits, iou, iou))

    assert torch.equal(trained[:, :, :4], logits[:, :, :4])
    assert torch.equal(trained[0, 0, 4], logits[0, 0, 4] + logits[0, 0, 2])
    assert torch.equal(trained[0, 1, 4], logits[0, 1, 4] + logits[0, 1, 1])
    assert same is iou
