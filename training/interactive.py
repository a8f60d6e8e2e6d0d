"""Interactive training: decode the prompts of a batch, correct some results, decode again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from training.corrections import correction, drop_points, feedback
from training.data import Batch
from training.decoder import MaskDecoder
from training.losses import Result, ValidLevels

Score = Callable[[Tensor, Tensor, ValidLevels], Result]
"""The loss of logits ``[Q,4,s,s]`` and predicted IoU ``[Q,4]``."""
REFINEMENT_WEIGHT = 0.5
"""Loss weight of the rounds after the first."""


@dataclass
class Round:
    """Result of one round, its weight in the loss, and which prompts had a box (first round)."""

    result: Result
    weight: float = 1.0
    boxed: Tensor | None = None


def rounds(decoder: MaskDecoder, embedding: Tensor, batch: Batch, score: Score) -> Iterator[Round]:
    """Yield a round of all prompts, then one or two more of half of them.

    A later round adds a point in the error and the previous logits as mask prompt.
    """
    side = batch.image.shape[1] // 4
    coords, labels = batch.coords, batch.labels
    no_masks = torch.zeros(len(coords), 0, side, side, device=coords.device)
    logits, result = _decode(decoder, embedding, batch, (coords, labels, no_masks), score)
    yield Round(result, boxed=batch.boxed.flatten())
    refined = batch.coords.shape[1] // 2
    batch = _refined_batch(batch, refined)
    for _ in range(1 + int(torch.rand(()) < 0.3)):
        logits, chosen = logits[:, :refined], _by_image(result.target_iou, len(coords))[:, :refined]
        coords, labels, masks = _correct(
            batch, coords[:, :refined], labels[:, :refined], logits, chosen
        )
        logits, result = _decode(decoder, embedding, batch, (coords, labels, masks), score)
        yield Round(result, REFINEMENT_WEIGHT)


def _decode(
    decoder: MaskDecoder,
    embedding: Tensor,
    batch: Batch,
    prompts: tuple[Tensor, Tensor, Tensor],
    score: Score,
) -> tuple[Tensor, Result]:
    logits, iou = decoder(embedding, *prompts)
    levels = ValidLevels(
        batch.masks.flatten(0, 1).float(), batch.valid.flatten(0, 1), batch.target.flatten()
    )
    return logits, score(logits.flatten(0, 1), iou.flatten(0, 1), levels)


def _by_image(values: Tensor, batch: int) -> Tensor:
    return values.reshape(batch, -1, *values.shape[1:])


def _refined_batch(batch: Batch, prompts: int) -> Batch:
    """Return the first prompts of every image, with the target as their only valid level."""
    target_only = torch.nn.functional.one_hot(batch.target[:, :prompts], 3).bool()
    return Batch(
        batch.image, batch.size, batch.levels, batch.coords[:, :prompts], batch.labels[:, :prompts],
        batch.masks[:, :prompts], target_only, batch.target[:, :prompts], batch.boxed[:, :prompts],
    )  # fmt: skip


def _correct(
    batch: Batch, coords: Tensor, labels: Tensor, logits: Tensor, target_iou: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return points and masks of the next round; sometimes only the first prompts have masks."""
    images, prompts = coords.shape[:2]
    mask_prompts = feedback(logits.flatten(0, 1), target_iou.flatten(0, 1))
    goal = batch.masks.flatten(0, 1)[
        torch.arange(images * prompts, device=coords.device), batch.target.flatten()
    ]
    point, label = correction(mask_prompts, goal.float())
    coords = torch.cat([coords, _by_image(point, images)], 2)
    labels = torch.cat([labels, _by_image(label, images)], 2)
    masks = prompts if torch.rand(()) < 0.7 else prompts // 2
    return (
        coords,
        drop_points(labels, masks),
        _by_image(mask_prompts, images)[:, :masks].contiguous(),
    )
