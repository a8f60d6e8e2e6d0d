"""Parity: how close the masks of exported models are to those of the checkpoint.

Both sides get the same images and prompts.  The reference is PyTorch in float32 throughout; the
exported graphs run in ONNX Runtime, with the embedding rounded to float16, as it is cached.
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
from samserve.export.families.base import Network
from samserve.models.digest import DIGEST_OUTPUT
from samserve.models.families.base import Family, ImageTransform, MaskChoice, Sides
from samserve.models.tensors import IOU_THRESHOLD
from samserve.types import Array, FloatArray, Label, Parity, Size, UInt8Array

POINTS_PER_SIDE = 4
BOXES_PER_SIDE = 3
PROMPTS_PER_IMAGE = POINTS_PER_SIDE**2 + BOXES_PER_SIDE**2
MIN_AREA_RATIO, MAX_AREA_RATIO = 0.001, 0.99
"""Of the image.  Two smaller or two larger masks agree even if the export is wrong."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Maximum relative L2 distances of embeddings, and of the logits of empty or full masks.

    Rounding embeddings to float16 causes 2e-4 of the first and somewhat more of the second; a wrong
    export causes about 1.
    """

    embedding: float
    logits: float


BOUNDS = {"fp32": Bounds(embedding=1e-3, logits=5e-3), "fp16": Bounds(embedding=5e-2, logits=5e-2)}
"""By the precision of the image encoder."""


@dataclass(frozen=True, slots=True, eq=False)
class ParityCase:
    """An image in the model frame, uint8 ``[1, side, side, 3]``, and prompts on it.

    ``prompts`` are coordinates ``[1, P, N, 2]`` and labels ``[1, P, N]``, one pair for each N.
    """

    family: Family
    transform: ImageTransform
    image: UInt8Array
    prompts: tuple[tuple[FloatArray, FloatArray], ...]

    def encoder_inputs(self) -> dict[str, Array]:
        """Return the inputs of the image encoder by name, in the order of the graph."""
        if self.family.fills_frame:
            return {"image": self.image}
        size = np.array([astuple(self.transform.resized)], dtype=np.int32)
        return {"image": self.image, "image_size": size}

    def every_mask(self) -> FloatArray:
        """Return the input of a decoder that asks for the masks of all prompts."""
        return np.full((1, self.family.mask_tokens), -np.inf, dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class ModelOutput:
    """An embedding's tensors ``[1, ...]``, logits ``[P, T, L, L]``, predicted IoU ``[P, T]``."""

    embedding: Mapping[str, FloatArray]
    logits: FloatArray
    iou: FloatArray


def parity_case(image: UInt8Array, family: Family, sides: Sides) -> ParityCase:
    """Transform uint8 RGB ``[h, w, 3]`` to the model frame, with a grid of points and of boxes."""
    transform = family.transform(Size(*image.shape[:2]), sides)
    scale = np.array([transform.resized.width, transform.resized.height], dtype=np.float32)
    # Boxes around the points of a coarser grid, which overlap by a half.
    centres = point_grid(BOXES_PER_SIDE) * scale
    half = scale / BOXES_PER_SIDE * 0.75
    boxes = np.concatenate([np.maximum(centres - half, 0), np.minimum(centres + half, scale)], 1)
    points = point_grid(POINTS_PER_SIDE) * scale
    with_point = [family.prompt(point, [Label.FOREGROUND], None) for point in points]
    with_box = [family.prompt(np.empty((0, 2)), [], box) for box in boxes]
    return ParityCase(
        family=family,
        transform=transform,
        image=family.place(image, transform)[None],
        prompts=(_stack(with_point), _stack(with_box)),
    )


def _stack(prompts: Sequence[tuple[FloatArray, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    coords, labels = zip(*prompts, strict=True)
    return np.stack(coords)[None], np.stack(labels)[None]


def run_in_torch(network: Network, case: ParityCase) -> ModelOutput:
    """Run the networks of the checkpoint in PyTorch, without rounding the embedding."""
    side, names = network.shapes.mask_size, network.shapes.embedding
    inputs = [torch.tensor(each) for each in case.encoder_inputs().values()]
    no_masks = torch.zeros(1, 0, side, side)
    every = torch.from_numpy(case.every_mask())
    with torch.no_grad():
        uncast = network.encoder_graph().eval()(*inputs)[len(names) :]
        decoder = network.decoder_graph().eval()
        outputs = [
            decoder(*uncast, *map(torch.from_numpy, prompt), no_masks, every)[:2]
            for prompt in case.prompts
        ]
    embedding = {name: tensor.numpy() for name, tensor in zip(names, uncast, strict=True)}
    logits, iou = (torch.cat(parts, 1)[0].numpy() for parts in zip(*outputs, strict=True))
    return ModelOutput(embedding, logits, iou)


class ExportedModel:
    """The exported ONNX graphs."""

    def __init__(self, graphs: Mapping[str, Path]) -> None:
        self._encoder, self._decoder = _session(graphs["encoder"]), _session(graphs["decoder"])
        self._decoder_inputs = {each.name for each in self._decoder.get_inputs()}

    def run(self, case: ParityCase) -> ModelOutput:
        """Run the graphs as a server does."""
        return self.decode_case(self.embed(case.encoder_inputs()), case)

    def decode_case(self, embedding: Mapping[str, Array], case: ParityCase) -> ModelOutput:
        """Decode the prompts of a case with an embedding as `embed` returns it."""
        side = case.transform.mask_side
        no_masks = np.zeros((1, 0, side, side), dtype=np.float32)
        outputs = [
            self.decode(embedding, coords, labels, no_masks) for coords, labels in case.prompts
        ]
        logits, iou = (np.concatenate(parts, 1)[0] for parts in zip(*outputs, strict=True))
        embedding32 = {name: tensor.astype(np.float32) for name, tensor in embedding.items()}
        return ModelOutput(embedding32, logits, iou)

    def embed(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the tensors of an embedding by name, float16 ``[1, ...]``."""
        names = [each.name for each in self._encoder.get_outputs() if each.name != DIGEST_OUTPUT]
        return dict(zip(names, self._encoder.run(names, dict(inputs)), strict=True))

    def decode(
        self,
        embedding: Mapping[str, Array],
        coords: FloatArray,
        labels: FloatArray,
        masks: FloatArray,
    ) -> tuple[FloatArray, FloatArray]:
        """Return logits ``[1, P, T, L, L]`` and predicted IoU ``[1, P, T]`` of all prompts.

        Coordinates are ``[1, P, N, 2]``, labels ``[1, P, N]``, mask prompts ``[1, M, L, L]``.
        """
        outputs = {each.name: each for each in self._decoder.get_outputs()}
        tokens = outputs["predicted_iou"].shape[-1]
        inputs: dict[str, Array] = {
            **embedding,
            "point_coords": coords,
            "point_labels": labels,
            "mask_input": masks,
        }
        if IOU_THRESHOLD in self._decoder_inputs:
            inputs[IOU_THRESHOLD] = np.full((1, tokens), -np.inf, dtype=np.float32)
        logits, iou = self._decoder.run(["low_res_logits", "predicted_iou"], inputs)
        return logits, iou


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences between an export and its checkpoint.

    ``figures`` exclude the masks of ``empty_or_full`` prompts, which are nearly empty or nearly
    full on both sides; ``logits_error`` is the largest relative L2 distance of their logits, 0 if
    there are none.
    """

    figures: Parity
    empty_or_full: int
    logits_error: float

    def failure(self, precision: str, min_iou: float) -> str:
        """Return why the parity check fails; empty if it passes."""
        figures, bounds = self.figures, BOUNDS[precision]
        if not math.isfinite(figures.embedding_error):
            return f"embeddings in {precision} are not finite"
        if figures.embedding_error > bounds.embedding:
            return (
                f"embeddings in {precision} differ from those of the checkpoint by "
                f"{figures.embedding_error:.1e}, more than {bounds.embedding:g}"
            )
        if figures.prompts and figures.mean_iou < min_iou:
            return (
                f"masks in {precision} have a mean IoU of {figures.mean_iou:.4f} with "
                f"those of the checkpoint, below {min_iou:g} "
                f"(worst {figures.worst_iou:.4f}, {figures.prompts} prompts)"
            )
        # Written so that NaN fails.
        if self.empty_or_full and not self.logits_error <= bounds.logits:
            return (
                f"masks of {self.empty_or_full} prompts are nearly empty or full, and their logits "
                f"in {precision} differ from those of the checkpoint by {self.logits_error:.1e}, "
                f"more than {bounds.logits:g}"
            )
        return ""


def compare(
    cases: Sequence[ParityCase], expected: Sequence[ModelOutput], actual: Sequence[ModelOutput]
) -> Comparison:
    """Compare the outputs of all images."""
    ious, changed, excluded, errors = [], [], [], []
    for case, right, ours in zip(cases, expected, actual, strict=True):
        family = case.family
        best = [family.best_choice(iou) for iou in right.iou]
        others = [family.best_choice(iou) for iou in ours.iou]
        changed.append([one != other for one, other in zip(best, others, strict=True)])
        logits, other = _inside(right, best, case), _inside(ours, best, case)
        threshold = case.family.mask_threshold
        ious.append(_mask_iou(logits > threshold, other > threshold))
        excluded.append(_empty_or_full(logits > threshold, other > threshold))
        errors.append(_logits_error(logits, other))
    distances = [_distance(ours, right) for right, ours in zip(expected, actual, strict=True)]
    empty_or_full = np.concatenate(excluded)
    compared = np.concatenate(ious)[~empty_or_full]
    figures = Parity(
        images=len(cases),
        prompts=len(compared),
        mean_iou=float(compared.mean()) if len(compared) else 0.0,
        worst_iou=float(compared.min()) if len(compared) else 0.0,
        best_mask_mismatch_ratio=float(np.concatenate(changed).mean()),
        embedding_error=float(np.max(distances)),
    )
    # The maximum of an array with NaN is NaN.
    excluded_errors = np.concatenate(errors)[empty_or_full]
    return Comparison(figures, int(empty_or_full.sum()), float(excluded_errors.max(initial=0.0)))


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def _inside(output: ModelOutput, best: Sequence[MaskChoice], case: ParityCase) -> FloatArray:
    """Return the logits of each prompt's best mask, cropped to the image: ``[P, h, w]``."""
    transform = case.transform
    step = transform.model_side // transform.mask_side
    height, width = (-(-side // step) for side in astuple(transform.resized))
    return np.stack(
        [
            choice.logits(logits)[:height, :width]
            for choice, logits in zip(best, output.logits, strict=True)
        ]
    )


def _empty_or_full(one: Array, other: Array) -> Array:
    """Return for each pair of masks whether both are nearly empty, or both nearly full."""
    ratios = np.stack([one.mean((1, 2)), other.mean((1, 2))])
    return np.asarray((ratios < MIN_AREA_RATIO).all(0) | (ratios > MAX_AREA_RATIO).all(0))


def _logits_error(right: FloatArray, ours: FloatArray) -> FloatArray:
    """L2 distance of each pair of logits, relative to the deviation of *right* from its mean.

    Not relative to their norm: logits far from 0 would hide every difference.
    """
    mean = right.mean((1, 2), keepdims=True, dtype=np.float64)
    deviation = np.linalg.norm((right - mean).reshape(len(right), -1), axis=1)
    distance = np.linalg.norm((ours - right).reshape(len(right), -1), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(distance / deviation, dtype=np.float32)


def _mask_iou(one: Array, other: Array) -> FloatArray:
    """Intersection over union of each pair of masks; 1 for two empty masks."""
    both = np.logical_and(one, other).sum((1, 2))
    either = np.logical_or(one, other).sum((1, 2))
    return np.where(either == 0, 1.0, both / np.maximum(either, 1)).astype(np.float32)


def _distance(ours: ModelOutput, right: ModelOutput) -> float:
    """Relative L2 distance of two embeddings: the maximum over their tensors."""
    norms = {name: float(np.linalg.norm(tensor)) for name, tensor in right.embedding.items()}
    if not all(norms.values()):
        return math.inf
    distances = [
        float(np.linalg.norm(ours.embedding[name] - tensor)) / norms[name]
        for name, tensor in right.embedding.items()
    ]
    # Not Python's max, which may ignore NaN.
    return float(np.max(distances))
