"""The exported pair in the whole service: gRPC responses against the original predictor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from samserve.core import rle
from samserve.types import CocoRle, Size
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests.conftest import serving_models
from tests.export.conftest import PHOTOS, Pair, View, small_and_tiny, small_only

# One server for all tests of a pair: encoding the photos takes most of the time.
pytestmark = pytest.mark.asyncio(loop_scope="module")

EQUAL = 0.9999


@dataclass(frozen=True)
class PromptCase:
    """One prompt in image pixels: points ``[n,3]`` (x, y, label), box XYXY, logits."""

    points: np.ndarray | None = None
    box: np.ndarray | None = None
    logits: np.ndarray | None = None

    def message(self) -> pb.Prompt:
        """Return the prompt of a request."""
        prompt = pb.Prompt()
        for x, y, label in () if self.points is None else self.points.tolist():
            prompt.points.append(pb.Point(x=x, y=y, label=1 if label == 1 else 2))
        if self.box is not None:
            x_min, y_min, x_max, y_max = self.box.tolist()
            prompt.box.CopyFrom(pb.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max))
        if self.logits is not None:
            prompt.mask.low_res_logits = self.logits.astype("<f4").tobytes()
        return prompt

    def original(self, view: View, *, multimask: bool) -> tuple[np.ndarray, np.ndarray]:
        """Run the original predictor on the rounded embedding: masks ``[C,h,w]``, IoUs ``[C]``."""
        predictor = view.predictor
        predictor.features = torch.from_numpy(view.stored).float()
        masks, iou, _ = predictor.predict(
            None if self.points is None else self.points[:, :2],
            None if self.points is None else self.points[:, 2].astype(int),
            self.box,
            None if self.logits is None else self.logits[None],
            multimask_output=multimask,
        )
        return masks, iou

    @property
    def ambiguous(self) -> bool:
        """Whether AUTO returns the best of three masks: at most two sparse tokens."""
        count = 0 if self.points is None else len(self.points)
        return count + 2 <= 2 if self.box is not None else count + 1 <= 2


def prompt_cases(view: View, seed: int) -> dict[str, PromptCase]:
    """Return a prompt of each kind, at fractional pixels."""
    random = np.random.default_rng(seed)
    height, width = view.photo.shape[:2]
    points = random.uniform(0.3, 0.7, (3, 2)) * (width, height)
    low = random.uniform(0.1, 0.4, 2) * (width, height)
    box = np.concatenate([low, low + random.uniform(0.3, 0.5, 2) * (width, height)])
    labels = np.array([[1.0], [1.0], [0.0]])
    side = 4 * view.stored.shape[2]
    axis = np.arange(side) * 256 / side
    distance = np.hypot(axis[:, None] - 80, axis[None, :] - 70)
    logits = np.clip(20 - distance / 2, -20, 20).astype(np.float32)
    labelled = np.hstack([points, labels])
    return {
        "point": PromptCase(points=labelled[:1]),
        "three points": PromptCase(points=labelled),
        "box": PromptCase(box=box),
        "point and box": PromptCase(points=labelled[:1], box=box),
        "point and mask": PromptCase(points=labelled[:1], logits=logits),
        "mask": PromptCase(logits=logits),
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(pair: Pair) -> AsyncIterator[SegmentationServiceStub]:
    """The service on the exported pair."""
    async with serving_models(engine={"model_repository": str(pair.repository)}) as (_, stub):
        yield stub


def image(view: View) -> pb.Image:
    return pb.Image(encoded=view.file)


def mask_of(mask: pb.Mask) -> np.ndarray:
    size = mask.coco_rle.size
    return rle.decode(CocoRle(Size(size.height, size.width), mask.coco_rle.counts))


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.mean(ours == theirs))


async def predict(stub: SegmentationServiceStub, **request: Any) -> pb.PredictResponse:
    return await stub.Predict(pb.PredictRequest(**request))


KINDS = ("point", "three points", "box", "point and box", "point and mask", "mask")
# Each kind on one of the photos; on the others in slow tests.
CASES = [
    pytest.param(kind, view, marks=[pytest.mark.slow] * (number % len(PHOTOS) != view))
    for number, kind in enumerate(KINDS)
    for view in range(len(PHOTOS))
]


@small_only
@pytest.mark.parametrize(("kind", "number"), CASES)
async def test_all_three_masks_equal_those_of_the_original_predictor(
    kind: str, number: int, pair: Pair, stub: SegmentationServiceStub
) -> None:
    view = pair.views[number]
    case = prompt_cases(view, number)[kind]
    masks, iou = case.original(view, multimask=True)

    response = await predict(
        stub, image=image(view), prompts=[case.message()], multimask=pb.MULTIMASK_ALL
    )

    ours = response.results[0].masks
    assert [mask.token_index for mask in ours] == [1, 2, 3]
    for mask, theirs, value in zip(ours, masks, iou, strict=True):
        assert agreement(mask_of(mask), theirs) >= EQUAL
        assert 0.05 <= theirs.mean() <= 0.95
        assert mask.predicted_iou == pytest.approx(value, abs=1e-4)


@small_only
@pytest.mark.parametrize(("kind", "number"), CASES)
async def test_auto_selects_as_the_reference_does(
    kind: str, number: int, pair: Pair, stub: SegmentationServiceStub
) -> None:
    view = pair.views[number]
    case = prompt_cases(view, number)[kind]
    masks, iou = case.original(view, multimask=case.ambiguous)
    best = int(np.argmax(iou))

    response = await predict(stub, image=image(view), prompts=[case.message()])

    (mask,) = response.results[0].masks
    assert mask.token_index == (best + 1 if case.ambiguous else 0)
    assert agreement(mask_of(mask), masks[best]) >= EQUAL


@small_and_tiny
async def test_many_prompts_of_all_kinds_equal_the_original(
    pair: Pair, stub: SegmentationServiceStub
) -> None:
    view = pair.views[0]
    many = [case for seed in range(4) for case in prompt_cases(view, seed).values()]

    response = await predict(
        stub,
        image=image(view),
        prompts=[case.message() for case in many],
        multimask=pb.MULTIMASK_SINGLE,
    )

    assert len(response.results) == len(many) == 24
    for case, result in zip(many, response.results, strict=True):
        masks, _ = case.original(view, multimask=False)
        assert agreement(mask_of(result.masks[0]), masks[0]) >= EQUAL


@small_and_tiny
async def test_refining_with_returned_logits_equals_the_original(
    pair: Pair, stub: SegmentationServiceStub
) -> None:
    view = pair.views[0]
    case = prompt_cases(view, 0)["point"]
    first = await predict(
        stub,
        image=image(view),
        prompts=[case.message()],
        multimask=pb.MULTIMASK_SINGLE,
        include_low_res_logits=True,
    )
    data = first.results[0].masks[0].low_res_logits
    refining = PromptCase(
        points=prompt_cases(view, 1)["three points"].points,
        logits=np.frombuffer(bytearray(data), dtype="<f4").reshape(4 * pair.grid, 4 * pair.grid),
    )
    masks, _ = refining.original(view, multimask=False)

    second = await predict(stub, image=image(view), prompts=[refining.message()])

    assert second.results[0].masks[0].token_index == 0
    assert agreement(mask_of(second.results[0].masks[0]), masks[0]) >= EQUAL
