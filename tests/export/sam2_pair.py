"""A SAM 2 of transformers and its export, and prompts that both decode.

The reference is the library's own forward pass, whole and unchanged; prompts are scaled and masks
upsampled here with torch. The other side is the exported graphs with the rules of the family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto
from samserve.core import masks
from samserve.export.families.base import Network
from samserve.export.onnx_export import UNCAST, export_decoder, export_encoder
from samserve.export.onnx_file import serialized
from samserve.models import families
from samserve.models.families.base import Family
from samserve.types import DynamicMultimask, Label, MaskSelection, Multimask, Size
from torch.nn import functional

from tests.export.conftest import session
from tests.export.equality import relative_l2
from tests.oracle import photos
from tests.oracle.onnx_sam import without_threshold

TENSORS = ("high_res_0", "high_res_1", "image_embedding")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Prompt:
    """One object on an image: points ``[n,2]`` and a box ``[4]`` in its pixels, mask logits."""

    points: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    labels: tuple[Label, ...] = ()
    box: np.ndarray | None = None
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Outcome:
    """What a prompt gives: all tokens, and the masks of every selection.

    ``logits`` ``[4,L,L]``, ``iou`` ``[4]``, the logit of the object score, the token of AUTO, and
    masks ``[5,h,w]``: that of SINGLE, those of ALL, then that of AUTO.
    """

    logits: np.ndarray
    iou: np.ndarray
    score: float
    auto: int
    masks: np.ndarray


@dataclass(frozen=True)
class Sam2Pair:
    """A model of the library, and the network that the export built from its checkpoint."""

    model: Any
    network: Network
    checkpoint: Path

    @property
    def side(self) -> int:
        """Side of the model frame."""
        return self.network.shapes.image_size

    @cached_property
    def encoder_model(self) -> ModelProto:
        """The exported encoder, which also returns its embedding in float32."""
        return export_encoder(self.network, keep_uncast=True)

    @cached_property
    def encoder(self) -> onnxruntime.InferenceSession:
        """A session with the exported encoder."""
        return session(serialized(self.encoder_model))

    @cached_property
    def decoder(self) -> onnxruntime.InferenceSession:
        """The exported decoder."""
        return session(serialized(export_decoder(self.network)))

    @cached_property
    def images(self) -> tuple[np.ndarray, ...]:
        """Two photos, 300x451 and 427x640."""
        chelsea, rocket, _ = photos.calibration()
        return (chelsea, rocket)

    @cached_property
    def embedded(self) -> Arrays:
        """Both images, embedded in one call."""
        return self.embed(families.SAM2)

    @property
    def stored(self) -> Arrays:
        """Both embeddings in float16."""
        return {name: self.embedded[name] for name in TENSORS}

    def embed(self, family: Family, images: int = 2) -> Arrays:
        """Embed both images, or only the first, in one call of the exported encoder."""
        outputs = [each.name for each in self.encoder.get_outputs()]
        values = self.encoder.run(outputs, _first(self.placed(family), images))
        return dict(zip(outputs, values, strict=True))

    def placed(self, family: Family) -> Arrays:
        """Return the input of the encoder."""
        transforms = [
            family.transform(Size(*e.shape[:2]), self.network.shapes) for e in self.images
        ]
        pixels = [family.place(e, t) for e, t in zip(self.images, transforms, strict=True)]
        return {"image": np.stack(pixels)}

    def reference_embedding(self, pixels: np.ndarray) -> Arrays:
        """Embed images of the model frame, uint8 ``[B,S,S,3]``, with the library."""
        planes = (torch.from_numpy(pixels).double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        maps = self.model.get_image_embeddings(planes.float().permute(0, 3, 1, 2))
        return {name: each.numpy() for name, each in zip(TENSORS, maps, strict=True)}

    @property
    def dynamic(self) -> DynamicMultimask:
        """The rule in the parameters of the exported model."""
        found = self.network.parameters
        delta, thresh = (found[f"multimask_stability_{name}"] for name in ("delta", "thresh"))
        return DynamicMultimask(float(delta), float(thresh))


Decoder = Callable[[Arrays], Sequence[np.ndarray]]


def decode_exported(
    pair: Sam2Pair,
    prompts: Sequence[Sequence[Prompt]],
    *,
    family: Family = families.SAM2,
    dynamic: DynamicMultimask | None = None,
    decoder: Decoder | None = None,
) -> list[list[Outcome]]:
    """Decode the prompts of the first B images with the exported decoder in one call."""
    transforms = [
        family.transform(Size(*image.shape[:2]), pair.network.shapes)
        for image, _ in zip(pair.images, prompts, strict=False)
    ]
    arranged = [
        [
            family.prompt(
                transform.points_to_model(prompt.points),
                prompt.labels,
                None
                if prompt.box is None
                else transform.points_to_model(prompt.box.reshape(2, 2)).reshape(4),
            )
            for prompt in row
        ]
        for row, transform in zip(prompts, transforms, strict=True)
    ]
    given = [[prompt.mask for prompt in row if prompt.mask is not None] for row in prompts]
    side, feeds = pair.network.shapes.mask_size, _first(pair.stored, len(prompts))
    feeds["point_coords"] = np.stack([np.stack([one[0] for one in row]) for row in arranged])
    feeds["point_labels"] = np.stack([np.stack([one[1] for one in row]) for row in arranged])
    feeds["mask_input"] = np.array(given, np.float32).reshape(len(prompts), -1, side, side)
    feeds |= without_threshold(pair.decoder, len(prompts))
    run = decoder or (lambda arrays: pair.decoder.run(None, arrays))
    logits, iou, score = run(feeds)
    rule = dynamic or pair.dynamic
    outcomes = []
    for image, transform in enumerate(transforms):
        row = []
        for index in range(len(prompts[image])):
            low_res, ious = logits[image, index], iou[image, index]
            labels = feeds["point_labels"][image, index]
            single, every, auto = (
                family.choose(MaskSelection(mode), labels, ious, low_res, rule)
                for mode in (Multimask.SINGLE, Multimask.ALL, Multimask.AUTO)
            )
            upsampling = family.upsampling(transform)
            binary = [
                masks.binary_mask(choice.logits(low_res), upsampling, level=family.mask_threshold)
                for choice in (*single, *every, *auto)
            ]
            (chosen,) = auto
            value = float(score[image, index, 0])
            row.append(Outcome(low_res, ious, value, chosen.token_index, np.stack(binary)))
        outcomes.append(row)
    return outcomes


def decode_reference(pair: Sam2Pair, prompts: Sequence[Sequence[Prompt]]) -> list[list[Outcome]]:
    """Decode with the library; it takes one mask per image, so masks are decoded one by one."""
    if prompts[0][0].mask is None:
        return _reference(pair, prompts)
    columns = [
        _reference(pair, [[row[index]] for row in prompts]) for index in range(len(prompts[0]))
    ]
    return [[column[image][0] for column in columns] for image in range(len(prompts))]


def _reference(pair: Sam2Pair, prompts: Sequence[Sequence[Prompt]]) -> list[list[Outcome]]:
    inputs = _library_inputs(pair, prompts)
    decoder = pair.model.mask_decoder
    every = pair.model(**inputs, multimask_output=True)
    auto = pair.model(**inputs, multimask_output=False)
    decoder.dynamic_multimask_via_stability = False
    single = pair.model(**inputs, multimask_output=False)
    decoder.dynamic_multimask_via_stability = True
    logits = torch.cat([single.pred_masks, every.pred_masks], 2)
    iou = torch.cat([single.iou_scores, every.iou_scores], 2).numpy()
    outcomes = []
    for image, row in enumerate(prompts):
        found = []
        for index in range(len(row)):
            tokens = logits[image, index]
            chosen = auto.pred_masks[image, index]
            (equal,) = torch.nonzero((tokens == chosen).all((1, 2))).flatten().tolist()
            returned = torch.cat([tokens, chosen])
            # One bilinear step from the low-res grid to the image.
            upsampled = functional.interpolate(
                returned[None], pair.images[image].shape[:2], mode="bilinear", align_corners=False
            )
            found.append(
                Outcome(
                    tokens.numpy(),
                    iou[image, index],
                    float(every.object_score_logits[image, index, 0]),
                    equal,
                    (upsampled[0] > 0).numpy(),
                )
            )
        outcomes.append(found)
    return outcomes


def _library_inputs(pair: Sam2Pair, prompts: Sequence[Sequence[Prompt]]) -> dict[str, Any]:
    """Return the library's inputs; points are stretched with the image."""
    scales = [
        pair.side / np.array([image.shape[1], image.shape[0]], np.float64) for image in pair.images
    ]
    stored = _first(pair.stored, len(prompts))
    inputs: dict[str, Any] = {
        "image_embeddings": [torch.from_numpy(stored[name]).float() for name in TENSORS]
    }
    one = prompts[0][0]
    if one.labels:
        points = [
            [p.points * scale for p in row] for row, scale in zip(prompts, scales, strict=False)
        ]
        labels = [[[int(label.value) for label in p.labels] for p in row] for row in prompts]
        inputs["input_points"] = torch.tensor(np.array(points), dtype=torch.float32)
        inputs["input_labels"] = torch.tensor(labels)
    if one.box is not None:
        boxes = [
            [(p.box.reshape(2, 2) * scale).reshape(4) for p in row]
            for row, scale in zip(prompts, scales, strict=False)
        ]
        inputs["input_boxes"] = torch.tensor(np.array(boxes), dtype=torch.float32)
    if one.mask is not None:
        inputs["input_masks"] = torch.from_numpy(np.stack([[row[0].mask] for row in prompts]))
    return inputs


def prompts_of(
    kind: str, pair: Sam2Pair, *, images: int, count: int, seed: int = 0, radius: float = 0.125
) -> list[Any]:
    """Return seeded random prompts, *count* for each of the first images.

    ``kind`` joins ``points<n>``, ``box`` and ``mask`` with ``+``.  Masks are discs; their
    ``radius`` is relative to the side of the frame.
    """
    random = np.random.default_rng(seed)
    return [
        [_prompt(kind, pair, pair.images[image], random, radius) for _ in range(count)]
        for image in range(images)
    ]


def _prompt(
    kind: str, pair: Sam2Pair, image: np.ndarray, random: np.random.Generator, radius: float
) -> Prompt:
    size = np.array([image.shape[1], image.shape[0]])
    parts = kind.split("+")
    points, labels, box, mask = np.empty((0, 2)), (), None, None
    if parts[0].startswith("points"):
        number = int(parts[0].removeprefix("points"))
        points = random.random((number, 2)) * size
        others = random.random(number - 1) < 0.5
        labels = (Label.FOREGROUND, *(Label(int(other)) for other in others))
    if "box" in parts:
        corner = random.random(2) * size / 2
        box = np.concatenate([corner, corner + 20 + random.random(2) * size * 0.4])
    if "mask" in parts:
        side = pair.network.shapes.mask_size
        centre = random.random((2, 1, 1)) * side
        distance = np.hypot(*(np.mgrid[:side, :side] - centre))
        mask = np.clip(20 - distance * 20 / (radius * side), -20, 20).astype(np.float32)
    return Prompt(points, labels, box, mask)


def refined(prompts: Sequence[Sequence[Prompt]], outcomes: list[list[Outcome]]) -> list[Any]:
    """Return the prompts of a second round, with the returned logits of the first."""
    limit = families.SAM2.max_returned_logit
    return [
        [
            Prompt(p.points, p.labels, p.box, np.clip(o.logits[o.auto], -limit, limit))
            for p, o in zip(row, found, strict=True)
        ]
        for row, found in zip(prompts, outcomes, strict=True)
    ]


def assert_same_embeddings(pair: Sam2Pair, found: Arrays, expected: Arrays) -> None:
    """Compare embeddings before the cast, and the cast."""
    for name in TENSORS:
        assert relative_l2(found[f"{name}{UNCAST}"], expected[name]) <= 1e-4
        assert (found[name] == found[f"{name}{UNCAST}"].astype(np.float16)).all()


def assert_same_outcomes(found: list[list[Outcome]], expected: list[list[Outcome]]) -> None:
    """Compare everything that is returned for prompts.

    The bounds of logits and IoU allow for rounding, which these weights amplify.
    """
    pairs = [
        (one, right)
        for row, reference in zip(found, expected, strict=True)
        for one, right in zip(row, reference, strict=True)
    ]
    for one, right in pairs:
        assert one.auto == right.auto
        assert (one.masks == right.masks).mean((1, 2)).min() >= 0.9999
        assert relative_l2(one.logits, right.logits) <= 1e-3
        assert np.abs(one.iou - right.iou).max() <= 1e-4
        assert abs(one.score - right.score) <= 1e-3 * max(1, abs(right.score))
        foreground = right.masks.mean((1, 2))
        assert foreground.min() >= 0.05
        assert foreground.max() <= 0.95


def _first(arrays: Arrays, count: int) -> Arrays:
    return {name: value[:count] for name, value in arrays.items()}
