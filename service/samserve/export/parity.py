"""How far the masks of exported models are from those of the checkpoint's own networks.

Both sides see the same pictures and prompts.  The reference is PyTorch in float32 from end to end;
the exported pair runs in ONNX Runtime, with its embedding rounded as it is stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from samserve.core.geometry import place_top_left, resize_image, resize_longest_side
from samserve.core.grid import point_grid
from samserve.core.tokens import BOX_LABELS, MULTIMASK_TOKENS, PAD_LABEL
from samserve.export.sam.graphs import DecoderGraph, EncoderGraph
from samserve.export.sam.model import Sam
from samserve.types import Array, FloatArray, Parity, Size, UInt8Array

POINTS_PER_SIDE = 4
BOXES_PER_SIDE = 3
PROMPTS_PER_PICTURE = POINTS_PER_SIDE**2 + BOXES_PER_SIDE**2
LOW_RES_STEP = 4
"""Pixels of the model frame along a pixel of the low-res logits."""

LEAST_SHARE, MOST_SHARE = 0.001, 0.99
"""Of the image.  Two masks of less or more agree whatever is wrong, so that they say nothing."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Greatest relative L2 distances of embeddings, and of the logits of masks that say nothing.

    Rounding to float16, in which embeddings are stored, makes 2e-4 of the first and somewhat more
    of the second; what is wrong makes about 1.
    """

    embedding: float
    logits: float


BOUNDS = {"fp32": Bounds(embedding=1e-3, logits=5e-3), "fp16": Bounds(embedding=5e-2, logits=5e-2)}
"""By the precision of the image encoder."""


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A picture in the model frame, uint8 ``[1, side, side, 3]``, and prompts on it."""

    image: UInt8Array
    resized: Size
    coords: FloatArray
    labels: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Embedding ``[1, 256, 64, 64]``, logits ``[P, 4, 256, 256]``, predicted IoU ``[P, 4]``."""

    embedding: FloatArray
    logits: FloatArray
    iou: FloatArray


def place(picture: UInt8Array, side: int) -> Placed:
    """Place uint8 RGB ``[h, w, 3]`` into the model frame, with a grid of points and of boxes."""
    resized = resize_longest_side(Size(*picture.shape[:2]), side)
    scale = np.array([resized.width, resized.height], dtype=np.float32)
    points = point_grid(POINTS_PER_SIDE) * scale
    padded = np.stack([points, np.zeros_like(points)], 1)
    # Boxes around the points of a coarser grid, which overlap by a half.
    middles = point_grid(BOXES_PER_SIDE) * scale
    half = scale / BOXES_PER_SIDE * 0.75
    corners = np.stack([np.maximum(middles - half, 0), np.minimum(middles + half, scale)], 1)
    labels = [(1.0, PAD_LABEL)] * len(points) + [BOX_LABELS] * len(corners)
    return Placed(
        image=place_top_left(resize_image(picture, resized), side)[None],
        resized=resized,
        coords=np.concatenate([padded, corners]).astype(np.float32)[None],
        labels=np.array(labels, dtype=np.float32)[None],
    )


def answer_in_torch(sam: Sam, placed: Placed) -> Answer:
    """Answer by the networks themselves, without any rounding in between."""
    side = sam.config.mask_size
    size = torch.tensor([[placed.resized.height, placed.resized.width]], dtype=torch.int32)
    with torch.no_grad():
        _, embedding = EncoderGraph(sam)(torch.from_numpy(placed.image), size)
        logits, iou = DecoderGraph(sam)(
            embedding,
            torch.from_numpy(placed.coords),
            torch.from_numpy(placed.labels),
            torch.zeros(1, 0, side, side),
        )
    return Answer(embedding.numpy(), logits[0].numpy(), iou[0].numpy())


class ExportedPair:
    """The pair of ONNX models that would be served."""

    def __init__(self, encoder: Path, decoder: Path) -> None:
        self._encoder, self._decoder = _session(encoder), _session(decoder)

    def answer(self, placed: Placed) -> Answer:
        """Answer as a server would."""
        size = np.array([[placed.resized.height, placed.resized.width]], dtype=np.int32)
        given = {"image": placed.image, "image_size": size}
        (embedding,) = self._encoder.run(["image_embedding"], given)
        side = self._decoder.get_outputs()[0].shape[-1]
        logits, iou = self._decoder.run(
            ["low_res_logits", "predicted_iou"],
            {
                "image_embedding": embedding,
                "point_coords": placed.coords,
                "point_labels": placed.labels,
                "mask_input": np.zeros((1, 0, side, side), dtype=np.float32),
            },
        )
        return Answer(embedding.astype(np.float32), logits[0], iou[0])


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far answers are apart.

    The masks of ``empty_or_full`` prompts, nearly so on both sides, are not among the figures;
    ``logits_error`` is the largest relative L2 distance of their logits, 0 if there are none.
    """

    figures: Parity
    empty_or_full: int
    logits_error: float

    def refusal(self, precision: str, min_iou: float) -> str:
        """Say why models this far from their checkpoint must not be served; empty if they may."""
        figures, bounds = self.figures, BOUNDS[precision]
        if not math.isfinite(figures.embedding_error):
            return f"embeddings in {precision} are not finite numbers"
        if figures.embedding_error > bounds.embedding:
            return (
                f"embeddings in {precision} differ from the checkpoint's own by "
                f"{figures.embedding_error:.1e}, more than {bounds.embedding:g}"
            )
        if figures.prompts and figures.mean_iou < min_iou:
            return (
                f"masks in {precision} have a mean IoU of {figures.mean_iou:.4f} with the "
                f"checkpoint's own, below {min_iou:g} "
                f"(worst {figures.worst_iou:.4f}, {figures.prompts} prompts)"
            )
        # Written so that what is no number is refused.
        if self.empty_or_full and not self.logits_error <= bounds.logits:
            return (
                f"masks of {self.empty_or_full} prompts are nearly empty or full, and their logits "
                f"in {precision} differ from the checkpoint's own by {self.logits_error:.1e}, more "
                f"than {bounds.logits:g}"
            )
        return ""


def compare(
    pictures: Sequence[Placed], expected: Sequence[Answer], found: Sequence[Answer]
) -> Comparison:
    """Compare answers image by image."""
    ious, changed, blind, errors = [], [], [], []
    for placed, right, ours in zip(pictures, expected, found, strict=True):
        best = _best(right.iou)
        changed.append(_best(ours.iou) != best)
        logits, other = _inside(right, best, placed), _inside(ours, best, placed)
        ious.append(_mask_iou(logits > 0, other > 0))
        blind.append(_say_nothing(logits > 0, other > 0))
        errors.append(_logits_error(logits, other))
    distances = [_distance(ours, right) for right, ours in zip(expected, found, strict=True)]
    empty_or_full = np.concatenate(blind)
    compared = np.concatenate(ious)[~empty_or_full]
    figures = Parity(
        pictures=len(pictures),
        prompts=len(compared),
        mean_iou=float(compared.mean()) if len(compared) else 0.0,
        worst_iou=float(compared.min()) if len(compared) else 0.0,
        changed_choices=float(np.concatenate(changed).mean()),
        embedding_error=float(np.max(distances)),
    )
    # The maximum of what is no number in one place is none either.
    unseen = np.concatenate(errors)[empty_or_full]
    return Comparison(figures, int(empty_or_full.sum()), float(unseen.max(initial=0.0)))


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def _best(iou: FloatArray) -> Array:
    """Choose the token of each prompt; what is no number is never the best."""
    first, *_ = MULTIMASK_TOKENS
    best: Array = np.nan_to_num(iou[:, first:], nan=-np.inf).argmax(1) + first
    return best


def _inside(answer: Answer, tokens: Array, placed: Placed) -> FloatArray:
    """Cut the logits of one mask of each prompt to the part that shows the image: ``[P, h, w]``."""
    height = -(-placed.resized.height // LOW_RES_STEP)
    width = -(-placed.resized.width // LOW_RES_STEP)
    chosen: FloatArray = answer.logits[np.arange(len(tokens)), tokens, :height, :width]
    return chosen


def _say_nothing(one: Array, other: Array) -> Array:
    """Tell of which pairs of masks both are nearly empty, or both nearly full."""
    shares = np.stack([one.mean((1, 2)), other.mean((1, 2))])
    return np.asarray((shares < LEAST_SHARE).all(0) | (shares > MOST_SHARE).all(0))


def _logits_error(right: FloatArray, ours: FloatArray) -> FloatArray:
    """L2 distance of each pair of masks before the cut, relative to how the right one varies.

    Not relative to its length: logits far from 0 would hide everything else.
    """
    middle = right.mean((1, 2), keepdims=True, dtype=np.float64)
    varies = np.linalg.norm((right - middle).reshape(len(right), -1), axis=1)
    apart = np.linalg.norm((ours - right).reshape(len(right), -1), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(apart / varies, dtype=np.float32)


def _mask_iou(one: Array, other: Array) -> FloatArray:
    """Intersection over union of each pair; two empty masks are equal."""
    both = np.logical_and(one, other).sum((1, 2))
    either = np.logical_or(one, other).sum((1, 2))
    return np.where(either == 0, 1.0, both / np.maximum(either, 1)).astype(np.float32)


def _distance(ours: Answer, right: Answer) -> float:
    length = float(np.linalg.norm(right.embedding))
    return float(np.linalg.norm(ours.embedding - right.embedding)) / length if length else math.inf
