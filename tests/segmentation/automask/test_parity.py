"""AutoMask compared with the reference generator, and a check that each step is covered.

Both run the default model: the reference `SamAutomaticMaskGenerator` on its ONNX files, and
samserve's pipeline.  Then each step of samserve is altered, one at a time, and the comparison must
report differences.
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
from PIL import Image
from prometheus_client import CollectorRegistry
from samserve.app import default_repository
from samserve.core import geometry, grid, masks, nms, regions
from samserve.core.upsampling import Upsampling
from samserve.engines.onnx import OnnxEngine
from samserve.models.families import SAM1
from samserve.segmentation.automask import crops, filters, generator
from samserve.segmentation.automask.events import AutoMaskRecord
from samserve.telemetry.metrics import Metrics

from tests.oracle.generator import FilterCounts, reference_auto_mask
from tests.segmentation.automask.comparison import counts_out, differences
from tests.segmentation.automask.replay import RecordingEngine, samserve_auto_mask

# As many as the reference uses here: equal thread counts give bit-identical outputs.
THREADS = 1


@dataclass(frozen=True)
class Case:
    """One comparison: an image and the options that differ from the defaults."""

    image: np.ndarray
    options: dict[str, Any]


def coins() -> np.ndarray:
    """Return coins at a size that is odd and larger than the model frame."""
    grey = Image.fromarray(skimage.data.coins()).resize((1153, 907), Image.Resampling.BICUBIC)
    return np.asarray(grey.convert("RGB"))


# With lower thresholds than the defaults, all filters have candidates from few points and crops.
# The defaults are compared on a Segment Anything model in tests/export/test_automask.py.
CASES = {
    "whole": Case(
        coins(),
        {
            "points_per_side": 9,
            "pred_iou_thresh": 0.7,
            "stability_score_thresh": 0.95,
        },
    ),
    "crops": Case(
        skimage.data.astronaut(),
        {
            "points_per_side": 12,
            "crop_n_layers": 1,
            "crop_n_points_downscale_factor": 2,
            "min_mask_region_area": 60,
            "pred_iou_thresh": 0.5,
            "stability_score_thresh": 0.9,
        },
    ),
}


@dataclass(frozen=True)
class Reference:
    """Results of the reference."""

    records: list[dict[str, Any]]
    counts: FilterCounts


@pytest.fixture(scope="module")
def engine() -> Iterator[RecordingEngine]:
    engine = RecordingEngine(
        OnnxEngine(default_repository(), THREADS, Metrics(CollectorRegistry()))
    )
    yield engine
    asyncio.run(engine.aclose())


@cache
def reference(name: str) -> Reference:
    repository = default_repository()
    encoder, decoder = (
        next(repository.glob(f"*_{role}/1/model.onnx")) for role in ("encoder", "decoder")
    )
    case = CASES[name]
    return Reference(
        *reference_auto_mask(
            case.image, encoder, decoder, output_mode="binary_mask", **case.options
        )
    )


def run(engine: RecordingEngine, name: str) -> tuple[tuple[AutoMaskRecord, ...], dict[str, Any]]:
    case = CASES[name]
    return asyncio.run(samserve_auto_mask(engine, case.image, case.options))


@pytest.mark.parametrize("name", ["whole", pytest.param("crops", marks=pytest.mark.slow)])
def test_records_match_the_reference_generator(name: str, engine: RecordingEngine) -> None:
    records, _ = run(engine, name)

    assert len(reference(name).records) >= 20
    assert differences(records, reference(name).records) == []


@pytest.mark.parametrize("name", ["whole", pytest.param("crops", marks=pytest.mark.slow)])
def test_filter_counts_match_the_reference_and_each_filter_rejects_some(
    name: str, engine: RecordingEngine
) -> None:
    _, counts = run(engine, name)
    expected = counts_out(reference(name).counts)
    actual = {filter_name: count.count_out for filter_name, count in counts.items()}

    assert actual == {filter_name: expected[filter_name] for filter_name in actual}
    rejecting = {count.name for count in counts.values() if count.count_out < count.count_in}
    # Without crops every edge is an edge of the image: the filter cannot reject.
    assert rejecting >= set(counts) - ({"crop_edge"} if name == "whole" else {"small_regions"})


Patch = Callable[[pytest.MonkeyPatch], None]


def option(**changed: Any) -> Patch:
    """Alter options of the call."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        original = generator.AutoMasker.generate

        def altered(self: Any, source: Any, model: str, overrides: Any, context: Any) -> Any:
            return original(self, source, model, {**overrides, **changed}, context)

        patch.setattr(generator.AutoMasker, "generate", altered)

    return apply


def swap(module: Any, name: str, wrap: Callable[[Any], Any]) -> Patch:
    """Replace a function by a wrapper of it."""
    return lambda patch: patch.setattr(module, name, wrap(getattr(module, name)))


def one_step_upsampling(original: Any) -> Any:
    def trace(low_res: Any, upsampling: Any, **levels: float) -> Any:
        image, side = upsampling.image, len(low_res)
        resized = geometry.resize_longest_side(image, side)
        direct = Upsampling.between(resized, image, model_side=side, low_res_side=side)
        return original(low_res, direct, **levels)

    return trace


def low_res_stability(original: Any) -> Any:
    def summarize(low_res: Any, upsampling: Any, *, level: float = 0.0, offset: float = 1.0) -> Any:
        summary = original(low_res, upsampling, level=level, offset=offset)
        inner, outer = ((low_res > bound).sum() for bound in (level + offset, level - offset))
        return replace(summary, stability=inner / outer if outer else 0.0)

    return summarize


def large_crops_preferred(original: Any) -> Any:
    """Return a suppression that prefers large crops."""

    def across(candidates: Any, options: Any) -> Any:
        scores = np.array([float(candidate.crop.size.pixels) for candidate in candidates])
        kept = nms.nms(filters._boxes(candidates), scores, options.crop_nms_thresh)
        return [candidates[index] for index in kept]

    return across


def inclusive_bbox(record: AutoMaskRecord) -> AutoMaskRecord:
    x, y, width, height = record.mask.bbox
    return replace(record, mask=replace(record.mask, bbox=(x, y, width + 1, height + 1)))


def only(mode: str) -> Any:
    def wrap(original: Any) -> Any:
        def remove(mask: Any, area: float, requested: str) -> Any:
            return original(mask, area, requested) if requested == mode else (mask, False)

        return remove

    return wrap


ALTERED: dict[str, tuple[str, Patch]] = {
    "no predicted IoU filter": ("whole", option(pred_iou_thresh=0.0)),
    "a stricter predicted IoU": ("whole", option(pred_iou_thresh=0.8)),
    "no stability filter": ("whole", option(stability_score_thresh=0.0)),
    "a wider stability offset": ("whole", option(stability_score_offset=1.2)),
    "stability of low-res logits": ("whole", swap(masks, "summarize", low_res_stability)),
    "one-step upsampling": ("whole", swap(masks, "trace", one_step_upsampling)),
    "another mask threshold": (
        "whole",
        lambda patch: patch.setattr(type(SAM1), "mask_threshold", 0.1),
    ),
    "the single-mask token included": (
        "whole",
        lambda patch: patch.setattr(type(SAM1), "multimask_tokens", (0, 1, 2)),
    ),
    "a higher NMS threshold": ("whole", option(box_nms_thresh=0.9)),
    "NMS in input order": (
        "whole",
        swap(nms, "nms", lambda nms: lambda boxes, scores, thr: nms(boxes, scores * 0, thr)),
    ),
    "a grid from edge to edge": (
        "whole",
        swap(
            grid,
            "point_grid",
            lambda _: (
                lambda n: np.stack(
                    np.meshgrid(np.linspace(0, 1, n), np.linspace(0, 1, n)), -1
                ).reshape(-1, 2)
            ),
        ),
    ),
    "points not scaled to the model": (
        "whole",
        swap(geometry, "points_to_model_frame", lambda _: lambda points, image, resized: points),
    ),
    "bbox with inclusive extents": (
        "whole",
        swap(
            generator,
            "to_record",
            lambda record: lambda *args: inclusive_bbox(record(*args)),
        ),
    ),
    "no filter at crop edges": (
        "crops",
        swap(
            geometry,
            "near_crop_edge",
            lambda _: lambda boxes, crop, image, **__: np.zeros(len(boxes), bool),
        ),
    ),
    "a wide crop edge": (
        "crops",
        swap(
            geometry,
            "near_crop_edge",
            lambda near: lambda boxes, crop, image, **_: near(boxes, crop, image, atol=60.0),
        ),
    ),
    "less overlap of crops": ("crops", option(crop_overlap_ratio=0.2)),
    "a full grid in every crop": ("crops", option(crop_n_points_downscale_factor=1)),
    "no NMS across crops": ("crops", option(crop_nms_thresh=1.0)),
    "large crops preferred": (
        "crops",
        swap(filters, "suppress_across_crops", large_crops_preferred),
    ),
    "small regions kept": ("crops", option(min_mask_region_area=0)),
    "only holes filled": ("crops", swap(regions, "remove_small_regions", only("holes"))),
    "only islands dropped": ("crops", swap(regions, "remove_small_regions", only("islands"))),
    "crop points in the frame of the crop": (
        "crops",
        lambda patch: patch.setattr(crops.CropPlan, "origin", property(lambda self: (0, 0))),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALTERED)
def test_altered_step_is_detected(
    name: str, engine: RecordingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, patch = ALTERED[name]
    patch(monkeypatch)

    records, _ = run(engine, case)

    assert differences(records, reference(case).records) != []
