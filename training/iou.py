"""Heads that predict the IoU of a mask with what was meant.

While masks are learnt, `IouHead` is enough, and its gradient tells the decoder's features what
makes a mask good. For the finished masks `MaskJudge` also looks where a mask ends and what lies
around it; `training.judging` fits it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TOKENS = 4
STATISTICS = 5
SEEN = 12
"""Channels of the decoder's features that the judge sees beside a mask."""


class IouHead(nn.Module):
    """Predict each mask's IoU from its pooled features and from how confident it is."""

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


class MaskJudge(nn.Module):
    """The same from what `IouHead` gets and from a look at every mask on the grid."""

    def __init__(self, fine: int, deep: int) -> None:
        super().__init__()
        self.see = nn.Conv2d(fine, SEEN, 1)
        self.first = nn.Conv2d(SEEN + 2, 24, 3, 2, 1)
        self.second = nn.Conv2d(24, 40, 3, 2, 1)
        self.hidden = nn.Linear(fine + deep + STATISTICS + 80, 128)
        self.token = nn.Parameter(torch.zeros(TOKENS, 128))
        self.third = nn.Linear(128, 64)
        self.out = nn.Linear(64, 1)

    def forward(self, fine: Tensor, deep: Tensor, cells: Tensor) -> Tensor:
        """Tensors as for `IouHead`."""
        state = torch.cat([describe(fine, deep, cells), self._look(fine, cells)], 2)
        hidden = torch.relu(self.hidden(state) + self.token)
        score: Tensor = torch.sigmoid(self.out(torch.relu(self.third(hidden)))).squeeze(-1)
        return score

    def _look(self, fine: Tensor, cells: Tensor) -> Tensor:
        """Convolve a mask, its doubtful cells and the features, and pool them: ``[Q,4,80]``."""
        chance = torch.sigmoid(cells.detach().float())
        inside, doubt = chance.mean(2), 4 * (chance * (1 - chance)).mean(2)
        seen = torch.relu(self.see(fine)).unsqueeze(1).expand(-1, TOKENS, -1, -1, -1)
        planes = torch.cat([torch.stack([inside, doubt], 2).to(seen.dtype), seen], 2)
        found = torch.relu(self.second(torch.relu(self.first(planes.flatten(0, 1))))).float()
        pooled = torch.cat([found.mean((2, 3)), found.amax((2, 3))], 1)
        return pooled.reshape(-1, TOKENS, pooled.shape[1])


def describe(fine: Tensor, deep: Tensor, cells: Tensor) -> Tensor:
    """Pooled features and statistics of every mask: ``[Q,4,fine+deep+5]``."""
    # Detached: the masks must not learn to look confident in order to please a head.
    # A diagonal of the 16 sub-cells is sample enough.
    logits = cells.detach()[:, :, ::5].float().flatten(3)
    inside = torch.sigmoid(logits)
    weights = inside.mean(2)
    mass = weights.sum(2, keepdim=True) + 1e-3
    pooled = (weights @ fine.flatten(2).transpose(1, 2).float()) / mass
    summary = deep.float().unsqueeze(1).expand(-1, TOKENS, -1)
    return torch.cat([pooled, summary, _confidence(logits, inside)], 2)


def _confidence(logits: Tensor, inside: Tensor) -> Tensor:
    """Statistics of sampled logits and probabilities ``[Q,4,4,h*w]``: ``[Q,4,5]``."""
    area = inside.mean((2, 3))
    doubt = (inside * (1 - inside)).mean((2, 3))
    certain = (inside * inside).mean((2, 3)) / (area + 1e-4)
    narrow = torch.sigmoid(4 * (logits - 1)).mean((2, 3))
    wide = torch.sigmoid(4 * (logits + 1)).mean((2, 3))
    stability = narrow / (wide + 1e-4)
    statistics = [area.sqrt(), doubt / (area + 1e-3), certain, stability, torch.log(area + 1e-4)]
    return torch.stack(statistics, 2)
