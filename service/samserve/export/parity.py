"""How far the masks of exported models are from those of the checkpoint's own networks.

Both sides see the same pictures and prompts.  The reference is PyTorch in float32 from end to end;
the exported pair runs in ONNX Runtime, with its embedding rounded as it is stored.
"""

from __future__ import annotations

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
        (embedding,) = self._encoder.run(None, {"image": placed.image, "image_size": size})
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


def compare(
    pictures: Sequence[Placed], expected: Sequence[Answer], found: Sequence[Answer]
) -> Parity:
    """Compare answers picture by picture."""
    ious, changed = [], []
    for placed, right, ours in zip(pictures, expected, found, strict=True):
        best = _best(right.iou)
        changed.append(_best(ours.iou) != best)
        ious.append(_mask_iou(_inside(right, best, placed), _inside(ours, best, placed)))
    errors = [_distance(ours, right) for right, ours in zip(expected, found, strict=True)]
    all_ious = np.concatenate(ious)
    return Parity(
        pictures=len(pictures),
        prompts=len(all_ious),
        mean_iou=float(all_ious.mean()),
        worst_iou=float(all_ious.min()),
        changed_choices=float(np.concatenate(changed).mean()),
        embedding_error=max(errors),
    )


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def _best(iou: FloatArray) -> Array:
    """Choose the token of each prompt; what is no number is never the best."""
    first, *_ = MULTIMASK_TOKENS
    best: Array = np.nan_to_num(iou[:, first:], nan=-np.inf).argmax(1) + first
    return best


def _inside(answer: Answer, tokens: Array, placed: Placed) -> Array:
    """Cut one mask of each prompt to the part that shows the picture: bool ``[P, h, w]``."""
    height = -(-placed.resized.height // LOW_RES_STEP)
    width = -(-placed.resized.width // LOW_RES_STEP)
    chosen: Array = answer.logits[np.arange(len(tokens)), tokens, :height, :width] > 0
    return chosen


def _mask_iou(one: Array, other: Array) -> FloatArray:
    """Intersection over union of each pair; two empty masks are equal."""
    both = np.logical_and(one, other).sum((1, 2))
    either = np.logical_or(one, other).sum((1, 2))
    return np.where(either == 0, 1.0, both / np.maximum(either, 1)).astype(np.float32)


def _distance(ours: Answer, right: Answer) -> float:
    return float(np.linalg.norm(ours.embedding - right.embedding) / np.linalg.norm(right.embedding))
