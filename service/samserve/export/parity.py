"""How far the masks of exported models are from those of the checkpoint's own networks.

Both sides see the same images and prompts.  The reference is PyTorch in float32 from end to end;
the exported graphs run in ONNX Runtime, with the embedding rounded as it is stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from samserve.core.grid import point_grid
from samserve.export.sam.graphs import DecoderGraph, EncoderGraph
from samserve.export.sam.model import Sam
from samserve.models.digest import DIGEST_OUTPUT
from samserve.models.families.base import Family, ImageTransform, Sides
from samserve.types import Array, FloatArray, Label, Parity, Size, UInt8Array

POINTS_PER_SIDE = 4
BOXES_PER_SIDE = 3
PROMPTS_PER_PICTURE = POINTS_PER_SIDE**2 + BOXES_PER_SIDE**2
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
    """An image in the model frame, uint8 ``[1, side, side, 3]``, and prompts on it."""

    family: Family
    transform: ImageTransform
    image: UInt8Array
    coords: FloatArray
    labels: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """An embedding's tensors ``[1, ...]``, logits ``[P, T, L, L]``, predicted IoU ``[P, T]``."""

    embedding: Mapping[str, FloatArray]
    logits: FloatArray
    iou: FloatArray


def place(image: UInt8Array, family: Family, sides: Sides) -> Placed:
    """Place uint8 RGB ``[h, w, 3]`` into the model frame, with a grid of points and of boxes."""
    transform = family.transform(Size(*image.shape[:2]), sides)
    scale = np.array([transform.resized.width, transform.resized.height], dtype=np.float32)
    # Boxes around the points of a coarser grid, which overlap by a half.
    middles = point_grid(BOXES_PER_SIDE) * scale
    half = scale / BOXES_PER_SIDE * 0.75
    boxes = np.concatenate([np.maximum(middles - half, 0), np.minimum(middles + half, scale)], 1)
    clicks = point_grid(POINTS_PER_SIDE) * scale
    prompts = [family.prompt(click, [Label.FOREGROUND], None) for click in clicks]
    prompts += [family.prompt(np.empty((0, 2)), [], box) for box in boxes]
    coords, labels = zip(*prompts, strict=True)
    return Placed(
        family=family,
        transform=transform,
        image=family.place(image, transform)[None],
        coords=np.stack(coords)[None],
        labels=np.stack(labels)[None],
    )


def answer_in_torch(sam: Sam, placed: Placed) -> Answer:
    """Answer by the networks themselves, without any rounding in between."""
    side = sam.config.mask_size
    size = torch.tensor([astuple(placed.transform.resized)], dtype=torch.int32)
    with torch.no_grad():
        encoded = EncoderGraph(sam)(torch.from_numpy(placed.image), size)
        uncast = encoded[len(sam.config.embedding) :]
        logits, iou = DecoderGraph(sam)(
            *uncast,
            torch.from_numpy(placed.coords),
            torch.from_numpy(placed.labels),
            torch.zeros(1, 0, side, side),
        )
    embedding = {
        name: tensor.numpy() for name, tensor in zip(sam.config.embedding, uncast, strict=True)
    }
    return Answer(embedding, logits[0].numpy(), iou[0].numpy())


class ExportedModel:
    """The ONNX graphs that would be served."""

    def __init__(self, graphs: Mapping[str, Path]) -> None:
        self._encoder, self._decoder = _session(graphs["encoder"]), _session(graphs["decoder"])

    def answer(self, placed: Placed) -> Answer:
        """Answer as a server would."""
        size = np.array([astuple(placed.transform.resized)], dtype=np.int32)
        given = {"image": placed.image, "image_size": size}
        names = [each.name for each in self._encoder.get_outputs() if each.name != DIGEST_OUTPUT]
        embedding = dict(zip(names, self._encoder.run(names, given), strict=True))
        side = placed.transform.mask_side
        logits, iou = self._decoder.run(
            ["low_res_logits", "predicted_iou"],
            {
                **embedding,
                "point_coords": placed.coords,
                "point_labels": placed.labels,
                "mask_input": np.zeros((1, 0, side, side), dtype=np.float32),
            },
        )
        wide = {name: tensor.astype(np.float32) for name, tensor in embedding.items()}
        return Answer(wide, logits[0], iou[0])


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
        best = _best(right.iou, placed.family)
        changed.append(_best(ours.iou, placed.family) != best)
        logits, other = _inside(right, best, placed), _inside(ours, best, placed)
        level = placed.family.mask_threshold
        ious.append(_mask_iou(logits > level, other > level))
        blind.append(_say_nothing(logits > level, other > level))
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


def _best(iou: FloatArray, family: Family) -> Array:
    """Choose the token of each prompt; what is no number is never the best."""
    tokens = np.array(family.multimask_tokens)
    best: Array = tokens[np.nan_to_num(iou[:, tokens], nan=-np.inf).argmax(1)]
    return best


def _inside(answer: Answer, tokens: Array, placed: Placed) -> FloatArray:
    """Cut the logits of one mask of each prompt to the part that shows the image: ``[P, h, w]``."""
    transform = placed.transform
    step = transform.model_side // transform.mask_side
    height, width = (-(-side // step) for side in astuple(transform.resized))
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
    """Relative L2 distance of two embeddings: that of the tensors that are furthest apart."""
    lengths = {name: float(np.linalg.norm(tensor)) for name, tensor in right.embedding.items()}
    if not all(lengths.values()):
        return math.inf
    apart = [
        float(np.linalg.norm(ours.embedding[name] - tensor)) / lengths[name]
        for name, tensor in right.embedding.items()
    ]
    # Not Python's maximum, which may pass over what is no number.
    return float(np.max(apart))
