"""Prompts of every kind, sent to the service and to the original implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import skimage.data
from samserve.core import rle
from samserve.models.families.base import Family
from samserve.types import CocoRle, HqMode, Size
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests.families.references import Prediction, PromptCase, Reference
from tests.oracle import photos
from tests.sample_images import encode

SIDE = 64
"""Side of the low-res logits of the toys."""


@dataclass(frozen=True)
class Served:
    """The original of a model, and the service."""

    reference: Reference
    stub: SegmentationServiceStub

    @property
    def family(self) -> Family:
        """The rules of the model."""
        return self.reference.family


def of(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return part of a photo, uint8 RGB ``[height,width,3]``."""
    return np.ascontiguousarray(rgb[:height, :width, :3])


PHOTOS: dict[str, Callable[[], np.ndarray]] = {
    "larger than the frame": photos.coffee_427x640,
    "wide": lambda: of(skimage.data.coffee()[200:], 57, 599),
    "tall": lambda: of(skimage.data.rocket()[:, 280:], 427, 83),
    "tiny": lambda: of(skimage.data.chelsea()[100:, 150:], 31, 23),
}


def prompt_cases(photo: np.ndarray, seed: int) -> dict[str, PromptCase]:
    """Return a prompt of each kind, at fractional pixels."""
    random = np.random.default_rng(seed)
    size = (photo.shape[1], photo.shape[0])
    points = random.uniform(0.2, 0.8, (3, 2)) * size
    low = random.uniform(0.1, 0.4, 2) * size
    box = np.concatenate([low, low + random.uniform(0.2, 0.5, 2) * size])
    labelled = np.hstack([points, [[1], [1], [0]]])
    axis = np.arange(SIDE)
    logits = np.clip(20 - 2 * np.hypot(axis[:, None] - 20, axis - 17), -20, 20).astype(np.float32)
    return {
        "point": PromptCase(labelled[:1]),
        "three points": PromptCase(labelled),
        "box": PromptCase(box=box),
        "box and point": PromptCase(labelled[:1], box),
        "box and two points": PromptCase(labelled[1:], box),
        "point and mask": PromptCase(labelled[:1], logits=logits),
        "box and mask": PromptCase(box=box, logits=logits),
        "mask": PromptCase(logits=logits),
    }


def message(case: PromptCase) -> pb.Prompt:
    """Return the prompt of a request."""
    prompt = pb.Prompt()
    for x, y, label in [] if case.points is None else case.points.tolist():
        prompt.points.append(pb.Point(x=x, y=y, label=1 if label == 1 else 2))
    if case.box is not None:
        x_min, y_min, x_max, y_max = case.box.tolist()
        prompt.box.CopyFrom(pb.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max))
    if case.logits is not None:
        prompt.mask.low_res_logits = case.logits.astype("<f4").tobytes()
    return prompt


async def predict(
    served: Served, photo: np.ndarray, *prompts: pb.Prompt, **options: Any
) -> list[pb.PromptResult]:
    response = await served.stub.Predict(
        pb.PredictRequest(
            image=pb.Image(encoded=encode(photo)),
            prompts=prompts,
            include_low_res_logits=True,
            **options,
        )
    )
    return list(response.results)


def mask_of(mask: pb.Mask) -> np.ndarray:
    size = mask.coco_rle.size
    return rle.decode(CocoRle(Size(size.height, size.width), mask.coco_rle.counts))


def logits_of(mask: pb.Mask) -> np.ndarray:
    return np.frombuffer(bytearray(mask.low_res_logits), "<f4").reshape(SIDE, SIDE)


def check_mask(mask: pb.Mask, expected: Prediction, index: int) -> None:
    """Compare one mask with that of the original: pixels, logits, and predicted IoU."""
    pixels = mask_of(mask)
    different = np.count_nonzero(pixels != (expected.logits[index] > 0))
    # One pixel of a tiny photo is more than the fraction.
    assert different <= max(1, 1e-4 * pixels.size), f"{different} of {pixels.size} pixels differ"
    largest = np.abs(expected.low_res[index]).max()
    assert np.abs(logits_of(mask) - expected.low_res[index]).max() < 0.02 + 3e-4 * largest
    assert mask.predicted_iou == pytest.approx(expected.predicted_iou[index], abs=2e-4)


def share(prediction: Prediction) -> float:
    return float((prediction.logits > 0).mean())


@dataclass(frozen=True)
class Mode:
    """Options of a request and of the original for the same masks; None: not for all prompts."""

    options: dict[str, Any]
    multimask: bool | None
    hq_mode: HqMode | None = None


MODES = {
    "sam2": {
        "all": Mode({"multimask": pb.MULTIMASK_ALL}, multimask=True),
        "auto": Mode({}, multimask=False),
    },
    "sam_hq": {
        "auto": Mode({}, multimask=None),
        "all": Mode({"multimask": pb.MULTIMASK_ALL}, multimask=True),
        "single": Mode({"multimask": pb.MULTIMASK_SINGLE}, multimask=False),
        "all, only": Mode(
            {"multimask": pb.MULTIMASK_ALL, "hq_mode": pb.HQ_MODE_ONLY}, True, HqMode.ONLY
        ),
        "single, only": Mode(
            {"multimask": pb.MULTIMASK_SINGLE, "hq_mode": pb.HQ_MODE_ONLY}, False, HqMode.ONLY
        ),
    },
}


def is_ambiguous(case: PromptCase) -> bool:
    """Return whether AUTO of `sam1` and `sam_hq` is the best of three masks."""
    count = 0 if case.points is None else len(case.points)
    return count + (1 if case.box is None else 2) <= 2


def expected_of(served: Served, photo: np.ndarray, case: PromptCase, mode: Mode) -> Prediction:
    """Return the masks of the original for one prompt."""
    multimask = is_ambiguous(case) if mode.multimask is None else mode.multimask
    return served.reference.predict(photo, case, multimask=multimask, hq_mode=mode.hq_mode)


def check_result(result: pb.PromptResult, expected: Prediction) -> None:
    """Compare the result of one prompt with the original's."""
    assert len(result.masks) == len(expected.logits)
    for index, mask in enumerate(result.masks):
        check_mask(mask, expected, index)
    assert result.HasField("object_score") == (expected.object_score is not None)
    if expected.object_score is not None:
        score = 1 / (1 + math.exp(-expected.object_score))
        assert result.object_score == pytest.approx(score, abs=1e-4)
