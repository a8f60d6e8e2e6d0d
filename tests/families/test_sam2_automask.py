"""AutoMask with SAM 2, compared with the original generator on the same exported files.

Both use the defaults of the original.  Then each rule of samserve is altered, one at a time, and
the comparison must report differences.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import skimage.data
from prometheus_client import CollectorRegistry
from samserve.core.upsampling import Upsampling
from samserve.engines.base import PromptBatch
from samserve.engines.onnx import OnnxEngine
from samserve.models.families import SAM1, SAM2, sam2
from samserve.models.families.base import ImageTransform
from samserve.segmentation.automask import generator
from samserve.segmentation.automask.events import AutoMaskRecord
from samserve.telemetry.metrics import Metrics
from samserve.types import Multimask

from tests.families.toys import STABILITY_DELTA, Toy
from tests.oracle import photos
from tests.oracle.onnx_sam2 import OnnxSam2, auto_mask
from tests.segmentation.automask.comparison import differences
from tests.segmentation.automask.replay import RecordingEngine, samserve_auto_mask

# As many as the reference uses here: equal thread counts give bit-identical outputs.
THREADS = 1
# The original scales points in float32 and decodes other prompts together: refined masks may differ
# where their logit is 0.
PIXELS = 8


@dataclass(frozen=True)
class Case:
    """One comparison: an image and the options that differ from the defaults."""

    image: np.ndarray
    options: dict[str, Any]


def tall() -> np.ndarray:
    """Return a photo of 640 x 360, which a square frame distorts."""
    return np.ascontiguousarray(skimage.data.rocket()[:, 180:420].repeat(3, 1)[:427, ::2])


CASES = {
    "whole": Case(photos.coffee_427x640(), {"points_per_side": 10}),
    "refined": Case(photos.coffee_427x640(), {"points_per_side": 6, "use_m2m": True}),
    "one mask": Case(photos.coffee_427x640(), {"points_per_side": 14, "multimask_output": False}),
    "crops": Case(
        tall(), {"points_per_side": 8, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2}
    ),
}
SLOW = {"one mask", "crops"}
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES]


@pytest.fixture(scope="module")
def toy(repositories: Callable[[str], Toy]) -> Toy:
    return repositories("sam2")


@pytest.fixture(scope="module")
def engine(toy: Toy) -> Iterator[RecordingEngine]:
    engine = RecordingEngine(OnnxEngine(toy.repository, THREADS, Metrics(CollectorRegistry())))
    yield engine
    asyncio.run(engine.aclose())


def original(toy: Toy) -> OnnxSam2:
    """Return the original code on the exported files."""
    return OnnxSam2(*toy.graphs, stability_delta=STABILITY_DELTA, threads=THREADS)


Reference = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def reference(toy: Toy) -> Reference:
    """A cached function that returns the original's records of a case."""
    model = original(toy)
    return cache(lambda name: auto_mask(model, CASES[name].image, **CASES[name].options))


def run(
    engine: RecordingEngine, name: str, **changed: Any
) -> tuple[tuple[AutoMaskRecord, ...], dict[str, Any]]:
    case = CASES[name]
    return asyncio.run(samserve_auto_mask(engine, case.image, {**case.options, **changed}))


@pytest.mark.parametrize("name", NAMES)
def test_records_match_the_original_generator(
    name: str, engine: RecordingEngine, reference: Reference
) -> None:
    records, counts = run(engine, name)

    assert len(reference(name)) >= 20
    assert differences(records, reference(name), pixels=PIXELS) == []
    rejecting = {count.name for count in counts.values() if count.count_out < count.count_in}
    assert {"pred_iou", "box_nms"} <= rejecting


def iou_at_the_threshold(reference: Reference) -> float:
    """Return a predicted IoU that a mask of the original has."""
    values = sorted(record["predicted_iou"] for record in reference("whole"))
    return float(values[len(values) // 2])


def test_predicted_iou_at_the_threshold_does_not_pass(
    toy: Toy, engine: RecordingEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    threshold = {"pred_iou_thresh": iou_at_the_threshold(reference)}
    case = CASES["whole"]
    expected = auto_mask(original(toy), case.image, **case.options, **threshold)

    records, _ = run(engine, "whole", **threshold)

    assert differences(records, expected, pixels=PIXELS) == []
    monkeypatch.setattr(type(SAM2), "iou_passes", np.greater_equal)
    records, _ = run(engine, "whole", **threshold)
    assert differences(records, expected, pixels=PIXELS) != []


Patch = Callable[[pytest.MonkeyPatch], None]


def family(**changed: Any) -> Patch:
    """Alter attributes of the family."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        for name, value in changed.items():
            patch.setattr(type(SAM2), name, value)

    return apply


def padded(patch: pytest.MonkeyPatch) -> None:
    for name in ("transform", "place"):
        patch.setattr(type(SAM2), name, getattr(type(SAM1), name))


def without_mask_prompts(patch: pytest.MonkeyPatch) -> None:
    prompts_of = generator.mask_prompts

    def altered(*args: Any) -> PromptBatch:
        prompts = prompts_of(*args)
        return replace(prompts, mask_input=prompts.mask_input[:0])

    patch.setattr(generator, "mask_prompts", altered)


def two_steps(self: Any, transform: ImageTransform) -> Upsampling:
    return SAM1.upsampling(transform)


def no_padding_token(self: Any, points: Any) -> Any:
    coords, labels = SAM1.grid_prompts(points)
    return coords[:, :1], labels[:, :1]


def stable_from(thresh: float) -> Patch:
    compare = sam2.is_stable
    return lambda patch: patch.setattr(
        sam2, "is_stable", lambda logits, rule: compare(logits, replace(rule, thresh=thresh))
    )


ALTERED: dict[str, tuple[str, Patch]] = {
    "pad instead of stretch": ("whole", padded),
    "two-step upsampling": ("whole", family(upsampling=two_steps)),
    "no padding token": ("whole", family(grid_prompts=no_padding_token)),
    "the default threshold of SAM 1": ("whole", family(automask=SAM1.automask)),
    "the single-mask token included": ("whole", family(multimask_tokens=(0, 1, 2))),
    "another mask threshold": ("whole", family(mask_threshold=0.5)),
    "no mask prompts": ("refined", without_mask_prompts),
    "mask prompts without a limit": ("refined", family(max_returned_logit=np.inf)),
    "always the single mask": ("one mask", family(automask_single=Multimask.SINGLE)),
    "always stable": ("one mask", stable_from(0.0)),
    "stable from a higher threshold": ("one mask", stable_from(0.99)),
    "crops padded": ("crops", padded),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALTERED)
def test_altered_rule_is_detected(
    name: str, engine: RecordingEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, patch = ALTERED[name]
    patch(monkeypatch)

    records, _ = run(engine, case)

    assert differences(records, reference(case), pixels=PIXELS) != []
