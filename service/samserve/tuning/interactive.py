"""Interactive training: decode the prompts of a batch, correct some results, decode again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from samserve.tuning.corrections import correction, drop_points, feedback
from samserve.tuning.losses import Result, ValidLevels

Decode = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Coordinates ``[B,P,N,2]``, labels ``[B,P,N]`` and mask prompts ``[B,M,s,s]`` for the first M of
the P prompts, to logits ``[B,P,T,s,s]`` and predicted IoU ``[B,P,T]``."""
Score = Callable[[Tensor, Tensor, ValidLevels], Result]
"""The loss of logits ``[Q,T,s,s]`` and predicted IoU ``[Q,T]``."""


@dataclass(frozen=True)
class Interaction:
    """How prompts are corrected after the first round.

    One of ``share`` prompts is corrected in ``rounds`` rounds, and in one more with the probability
    ``another``.  Masks are fed back for all of them, or, unless drawn with ``all_masks``, for half.
    Points are dropped with the probability ``dropped``, so that only the mask prompt remains.
    ``weight`` is that of these rounds in the loss.
    """

    share: int = 2
    rounds: int = 1
    another: float = 0.3
    all_masks: float = 0.7
    dropped: float = 0.15
    weight: float = 0.5


TINY = Interaction()
"""That of `sam_tiny`."""


@dataclass
class PromptBatch:
    """P prompts on each of B images.

    ``coords`` ``[B,P,N,2]`` in model pixels and ``labels`` ``[B,P,N]`` in the decoder's order, with
    ``tail`` padding points or box corners at the end, before which further points are inserted.
    ``masks`` ``[B,P,3,s,s]``: the objects at the prompt by level, ``valid`` bool ``[B,P,3]``,
    ``target`` int64 ``[B,P]`` and ``boxed`` bool ``[B,P]``; ``weight`` ``[B,P]``, None for equal
    weights.
    """

    coords: Tensor
    labels: Tensor
    masks: Tensor
    valid: Tensor
    target: Tensor
    boxed: Tensor
    weight: Tensor | None = None
    tail: int = 0

    def to(self, device: str) -> PromptBatch:
        """Return the prompts on this device."""
        tensors = {
            item.name: getattr(self, item.name).to(device)
            for item in fields(self)
            if isinstance(getattr(self, item.name), Tensor)
        }
        return replace(self, **tensors)

    def first(self, prompts: int) -> PromptBatch:
        """Return the first prompts of every image, with the target as their only valid level."""
        target = self.target[:, :prompts]
        return PromptBatch(
            self.coords[:, :prompts],
            self.labels[:, :prompts],
            self.masks[:, :prompts],
            torch.nn.functional.one_hot(target, 3).bool(),
            target,
            self.boxed[:, :prompts],
            None if self.weight is None else self.weight[:, :prompts],
            self.tail,
        )

    def with_points(self, coords: Tensor, labels: Tensor) -> PromptBatch:
        """Return the prompts with one more point each, ``[B,P,1,2]`` and ``[B,P,1]``."""
        end = self.coords.shape[2] - self.tail
        return replace(
            self,
            coords=torch.cat([self.coords[:, :, :end], coords, self.coords[:, :, end:]], 2),
            labels=torch.cat([self.labels[:, :, :end], labels, self.labels[:, :, end:]], 2),
        )


@dataclass
class Round:
    """Result of one round, its weight in the loss, and which prompts had a box (first round)."""

    result: Result
    weight: float = 1.0
    boxed: Tensor | None = None


def rounds(
    decode: Decode, batch: PromptBatch, score: Score, interaction: Interaction = TINY
) -> Iterator[Round]:
    """Yield a round of all prompts, then the further ones of an interaction.

    A later round adds a point in the error and the previous logits as mask prompt.
    """
    images, side = len(batch.coords), batch.masks.shape[-1]
    no_masks = torch.zeros(images, 0, side, side, device=batch.coords.device)
    logits, result = _decode(decode, batch, no_masks, score)
    yield Round(result, boxed=batch.boxed.flatten())
    refined = batch.coords.shape[1] // interaction.share
    batch = batch.first(refined)
    for _ in range(interaction.rounds + int(torch.rand(()) < interaction.another)):
        logits, chosen = logits[:, :refined], _by_image(result.target_iou, images)[:, :refined]
        batch, masks = _correct(batch, logits, chosen, interaction)
        logits, result = _decode(decode, batch, masks, score)
        yield Round(result, interaction.weight)


def _decode(
    decode: Decode, batch: PromptBatch, masks: Tensor, score: Score
) -> tuple[Tensor, Result]:
    logits, iou = decode(batch.coords, batch.labels, masks)
    levels = ValidLevels(
        batch.masks.flatten(0, 1).float(),
        batch.valid.flatten(0, 1),
        batch.target.flatten(),
        None if batch.weight is None else batch.weight.flatten(),
    )
    return logits, score(logits.flatten(0, 1), iou.flatten(0, 1), levels)


def _by_image(values: Tensor, batch: int) -> Tensor:
    return values.reshape(batch, -1, *values.shape[1:])


def _correct(
    batch: PromptBatch, logits: Tensor, target_iou: Tensor, interaction: Interaction
) -> tuple[PromptBatch, Tensor]:
    """Return the prompts with a point more, and masks; sometimes only the first have masks."""
    images, prompts = batch.coords.shape[:2]
    device = batch.coords.device
    mask_prompts = feedback(logits.flatten(0, 1), target_iou.flatten(0, 1))
    goal = batch.masks.flatten(0, 1)[
        torch.arange(images * prompts, device=device), batch.target.flatten()
    ]
    point, label = correction(mask_prompts, goal.float())
    corrected = batch.with_points(_by_image(point, images), _by_image(label, images))
    masks = prompts if torch.rand(()) < interaction.all_masks else prompts // 2
    labels = drop_points(corrected.labels, masks, interaction.dropped)
    return (
        replace(corrected, labels=labels),
        _by_image(mask_prompts, images)[:, :masks].contiguous(),
    )
