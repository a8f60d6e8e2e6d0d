"""Heads that predict the IoU of a mask with its target.

In mask training `IouHead` is sufficient, and its gradient improves the decoder's features. For the
final masks, `MaskIouHead` also has the outline of a mask and its surroundings as input;
the IoU fit of `training` fits it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TOKENS = 4
STATISTICS = 5
FEATURE_CHANNELS = 12
"""Channels of the decoder's features that `MaskIouHead` has beside a mask."""


class IouHead(nn.Module):
    """Predicts each mask's IoU from its pooled features and statistics of its confidence."""

    def __init__(self, fine: int, deep: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(fine + deep + STATISTICS, 96)
        self.token = nn.Parameter(torch.zeros(TOKENS, 96))
        self.second = nn.Linear(96, 64)
        self.out = nn.Linear(64, 1)

    def forward(self, fine: Tensor, deep: Tensor, cells: Tensor) -> Tensor:
        """Map ``[B*P,48,h,w]``, ``[B*P,112]`` and ``[B*P,4,16,h,w]`` logits to ``[B*P,4]``."""
        hidden = torch.relu(self.hidden(describe(fine, deep, cells)) + self.token)
        score: Tensor = torch.sigmoid(self.out(torch.relu(self.second(hidden)))).squeeze(-1)
        return score


class MaskIouHead(nn.Module):
    """Predicts each mask's IoU from the inputs of `IouHead` and from the mask on the grid."""

    def __init__(self, fine: int, deep: int) -> None:
        super().__init__()
        self.see = nn.Conv2d(fine, FEATURE_CHANNELS, 1)
        self.first = nn.Conv2d(FEATURE_CHANNELS + 2, 24, 3, 2, 1)
        self.second = nn.Conv2d(24, 40, 3, 2, 1)
        self.hidden = nn.Linear(fine + deep + STATISTICS + 80, 128)
        self.token = nn.Parameter(torch.zeros(TOKENS, 128))
        self.third = nn.Linear(128, 64)
        self.out = nn.Linear(64, 1)

    def forward(self, fine: Tensor, deep: Tensor, cells: Tensor) -> Tensor:
        """Map tensors as `IouHead` does."""
        state = torch.cat([describe(fine, deep, cells), self._pool_mask(fine, cells)], 2)
        hidden = torch.relu(self.hidden(state) + self.token)
        score: Tensor = torch.sigmoid(self.out(torch.relu(self.third(hidden)))).squeeze(-1)
        return score

    def _pool_mask(self, fine: Tensor, cells: Tensor) -> Tensor:
        """Convolve and pool a mask, its uncertain cells and the features: ``[Q,4,80]``."""
        probability = torch.sigmoid(cells.detach().float())
        inside, uncertainty = probability.mean(2), 4 * (probability * (1 - probability)).mean(2)
        selected = torch.relu(self.see(fine)).unsqueeze(1).expand(-1, TOKENS, -1, -1, -1)
        planes = torch.cat([torch.stack([inside, uncertainty], 2).to(selected.dtype), selected], 2)
        convolved = torch.relu(self.second(torch.relu(self.first(planes.flatten(0, 1))))).float()
        pooled = torch.cat([convolved.mean((2, 3)), convolved.amax((2, 3))], 1)
        return pooled.reshape(-1, TOKENS, pooled.shape[1])


def describe(fine: Tensor, deep: Tensor, cells: Tensor) -> Tensor:
    """Return pooled features and statistics of every mask: ``[Q,4,fine+deep+5]``."""
    # Detached: masks must not be trained to appear confident to the head.
    # A diagonal of the 16 sub-cells is a sufficient sample.
    logits = cells.detach()[:, :, ::5].float().flatten(3)
    inside = torch.sigmoid(logits)
    weights = inside.mean(2)
    mass = weights.sum(2, keepdim=True) + 1e-3
    pooled = (weights @ fine.flatten(2).transpose(1, 2).float()) / mass
    summary = deep.float().unsqueeze(1).expand(-1, TOKENS, -1)
    return torch.cat([pooled, summary, _confidence(logits, inside)], 2)


def _confidence(logits: Tensor, inside: Tensor) -> Tensor:
    """Return statistics ``[Q,4,5]`` of sampled logits and probabilities ``[Q,4,4,h*w]``."""
    area = inside.mean((2, 3))
    uncertainty = (inside * (1 - inside)).mean((2, 3))
    certain = (inside * inside).mean((2, 3)) / (area + 1e-4)
    narrow = torch.sigmoid(4 * (logits - 1)).mean((2, 3))
    wide = torch.sigmoid(4 * (logits + 1)).mean((2, 3))
    stability = narrow / (wide + 1e-4)
    statistics = [
        area.sqrt(),
        uncertainty / (area + 1e-3),
        certain,
        stability,
        torch.log(area + 1e-4),
    ]
    return torch.stack(statistics, 2)
