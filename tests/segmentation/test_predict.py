from __future__ import annotations

import numpy as np
import pytest
from samserve.context import RequestContext
from samserve.core import rle
from samserve.core.regions import MaskChanges
from samserve.engines.fake import FakeEngine
from samserve.scheduling.offload import MAX_MASK_PIXELS, MAX_SHORT_MASK_PIXELS, Work
from samserve.segmentation.predict import PredictOptions
from samserve.types import (
    BinaryMask,
    CocoRle,
    Label,
    MaskFormat,
    MaskSelection,
    Multimask,
    NoPixels,
    PackedMask,
    PngMask,
    Point,
    Polygons,
    Prompt,
    Segmentation,
    UncompressedRle,
)

from tests.segmentation.use_cases import RecordingWorkers, UseCases, blank


async def test_mask_prompts_are_decoded_in_separate_worker_calls() -> None:
    workers = RecordingWorkers()
    use_cases = UseCases(FakeEngine(), workers)
    mask = np.zeros((40, 60), bool)
    mask[10:30, 10:40] = True
    prompts = tuple(Prompt(mask=BinaryMask(rle.encode(mask))) for _ in range(3))

    prediction = await use_cases.predictor.predict(
        blank(40, 60), "", prompts, PredictOptions(), RequestContext()
    )
    await use_cases.aclose()

    assert len(prediction.results) == 3
    assert workers.calls.count("with_logits") == 3


@pytest.mark.parametrize(
    ("mask_format", "kind"),
    [
        (MaskFormat.COCO_RLE, CocoRle),
        (MaskFormat.UNCOMPRESSED_RLE, UncompressedRle),
        (MaskFormat.BINARY_MASK, PackedMask),
        (MaskFormat.PNG, PngMask),
        (MaskFormat.POLYGONS, Polygons),
        (MaskFormat.BOX, NoPixels),
    ],
)
async def test_mask_has_the_requested_format(
    mask_format: MaskFormat, kind: type[Segmentation]
) -> None:
    use_cases = UseCases(FakeEngine())
    prompts = (Prompt(points=(Point(20, 20, Label.FOREGROUND),)),)

    prediction = await use_cases.predictor.predict(
        blank(40, 60), "", prompts, PredictOptions(mask_format=mask_format), RequestContext()
    )
    await use_cases.aclose()

    (result,) = prediction.results
    (candidate,) = result.candidates
    assert candidate.mask is not None
    assert type(candidate.mask.segmentation) is kind


ISLANDS = MaskChanges(min_island_area=1)
WORK: dict[str, tuple[PredictOptions, int, Work]] = {
    "run lengths": (PredictOptions(), MAX_MASK_PIXELS, Work.QUICK),
    "many run lengths": (PredictOptions(), MAX_SHORT_MASK_PIXELS, Work.SHORT),
    "box": (PredictOptions(mask_format=MaskFormat.BOX), MAX_MASK_PIXELS, Work.QUICK),
    "files": (PredictOptions(mask_format=MaskFormat.PNG), MAX_MASK_PIXELS, Work.SHORT),
    "large files": (PredictOptions(mask_format=MaskFormat.PNG), MAX_SHORT_MASK_PIXELS, Work.LONG),
    "changes": (PredictOptions(changes=ISLANDS), MAX_MASK_PIXELS, Work.SHORT),
    "many changes": (PredictOptions(changes=ISLANDS), MAX_SHORT_MASK_PIXELS, Work.LONG),
    "polygons": (PredictOptions(mask_format=MaskFormat.POLYGONS), 100, Work.LONG),
}


@pytest.mark.parametrize("name", WORK)
def test_costly_formats_and_changes_run_in_threads(name: str) -> None:
    options, pixels, work = WORK[name]

    assert options.work(pixels) is work


async def test_polygons_of_each_mask_are_a_piece_of_work_of_their_own() -> None:
    workers = RecordingWorkers()
    use_cases = UseCases(FakeEngine(), workers)
    prompts = tuple(Prompt(points=(Point(20, y, Label.FOREGROUND),)) for y in (10, 20))
    options = PredictOptions(
        MaskSelection(Multimask.ALL), mask_format=MaskFormat.POLYGONS, changes=ISLANDS
    )

    await use_cases.predictor.predict(blank(40, 60), "", prompts, options, RequestContext())
    await use_cases.aclose()

    assert workers.calls.count("_candidate") == 6
