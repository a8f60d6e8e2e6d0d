from __future__ import annotations

import numpy as np
import pytest
from samserve.context import RequestContext
from samserve.core import rle
from samserve.engines.fake import FakeEngine
from samserve.segmentation.predict import PredictOptions
from samserve.types import (
    BinaryMask,
    CocoRle,
    Label,
    MaskFormat,
    PackedMask,
    Point,
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
