"""Ask a batch's prompts, look at the answers, correct some, and ask again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data import Batch
from training.decoder import MaskDecoder
from training.losses import Meanings, Result
from training.rounds import correction, feedback, forget_points

Score = Callable[[Tensor, Tensor, Meanings], Result]
"""What to make of logits ``[Q,4,s,s]`` and predicted IoU ``[Q,4]``."""
AGAIN = 0.5
"""Weight of the rounds after the first."""


@dataclass
class Round:
    """One round's result, its weight in the loss, and which prompts had a box (first round)."""

    result: Result
    weight: float = 1.0
    boxed: Tensor | None = None


def rounds(decoder: MaskDecoder, embedding: Tensor, batch: Batch, score: Score) -> Iterator[Round]:
    """All prompts once, then half of them once or twice more.

    A later round adds a click in the error, and the mask of the answer goes back in as a prompt.
    """
    side = batch.image.shape[1] // 4
    coords, labels = batch.coords, batch.labels
    nothing = torch.zeros(len(coords), 0, side, side, device=coords.device)
    logits, result = _ask(decoder, embedding, batch, (coords, labels, nothing), score)
    yield Round(result, boxed=batch.boxed.flatten())
    kept = batch.coords.shape[1] // 2
    batch = _first(batch, kept)
    for _ in range(1 + int(torch.rand(()) < 0.3)):
        logits, chosen = logits[:, :kept], _split(result.target_iou, len(coords))[:, :kept]
        coords, labels, masks = _correct(batch, coords[:, :kept], labels[:, :kept], logits, chosen)
        logits, result = _ask(decoder, embedding, batch, (coords, labels, masks), score)
        yield Round(result, AGAIN)


def _ask(
    decoder: MaskDecoder,
    embedding: Tensor,
    batch: Batch,
    prompts: tuple[Tensor, Tensor, Tensor],
    score: Score,
) -> tuple[Tensor, Result]:
    logits, iou = decoder(embedding, *prompts)
    meanings = Meanings(
        batch.masks.flatten(0, 1).float(), batch.valid.flatten(0, 1), batch.target.flatten()
    )
    return logits, score(logits.flatten(0, 1), iou.flatten(0, 1), meanings)


def _split(values: Tensor, batch: int) -> Tensor:
    return values.reshape(batch, -1, *values.shape[1:])


def _first(batch: Batch, prompts: int) -> Batch:
    """The first prompts of every image, each meaning only what was meant."""
    meant = torch.nn.functional.one_hot(batch.target[:, :prompts], 3).bool()
    return Batch(
        batch.image, batch.size, batch.levels, batch.coords[:, :prompts], batch.labels[:, :prompts],
        batch.masks[:, :prompts], meant, batch.target[:, :prompts], batch.boxed[:, :prompts],
    )  # fmt: skip


def _correct(
    batch: Batch, coords: Tensor, labels: Tensor, logits: Tensor, target_iou: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Points and masks of the next round; sometimes only the first prompts carry their mask."""
    images, prompts = coords.shape[:2]
    shown = feedback(logits.flatten(0, 1), target_iou.flatten(0, 1))
    goal = batch.masks.flatten(0, 1)[
        torch.arange(images * prompts, device=coords.device), batch.target.flatten()
    ]
    point, label = correction(shown, goal.float())
    coords = torch.cat([coords, _split(point, images)], 2)
    labels = torch.cat([labels, _split(label, images)], 2)
    masks = prompts if torch.rand(()) < 0.7 else prompts // 2
    return coords, forget_points(labels, masks), _split(shown, images)[:, :masks].contiguous()
