"""Masks for those prompts only whose predicted IoU is high enough."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Survivors:
    """Prompts with a predicted IoU of a threshold: ``rows`` int64 ``[n]`` of all B*P.

    Masks of the others are zeros instead of missing, so that axes do not depend on values: servers
    split a batch by its first axis.
    """

    rows: Tensor
    batch: int
    prompts: int

    @classmethod
    def of(cls, iou: Tensor, iou_threshold: Tensor) -> Survivors:
        """Select prompts by ``iou`` ``[B,P,T]`` of at least ``iou_threshold`` ``[B,T]`` for a T."""
        passed = (iou >= iou_threshold.unsqueeze(1)).any(2)
        return cls(passed.flatten().nonzero().squeeze(1), iou.shape[0], iou.shape[1])

    def take(self, values: Tensor) -> Tensor:
        """Return ``[n,...]`` of values ``[B,P,...]``."""
        return values.flatten(0, 1)[self.rows]

    def of_image(self, values: Tensor) -> Tensor:
        """Return ``[n,...]`` of values ``[B,...]``, or ``[1,...]`` if B is 1."""
        count, several = self.rows.shape[0], torch.as_tensor(self.batch - 1).clamp(max=1)
        # By arithmetic: a condition would be fixed in a traced graph.
        images = torch.as_tensor(count) * several + (1 - several)
        zero = self.rows.new_zeros(1)
        each = torch.cat([self.rows // self.prompts * several, zero])
        return values[each[:images]]

    def scatter(self, values: Tensor) -> Tensor:
        """Return ``[B,P,...]`` of values ``[n,...]``, with zeros for the other prompts."""
        lengths = values.shape[1:]
        zeros = values.new_zeros(1).expand(self.batch * self.prompts, *lengths)
        scattered = zeros.index_put((self.rows,), values)
        return scattered.reshape(self.batch, self.prompts, *lengths)
