"""AutoMask's work on masks is divided into pieces, and bounded in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from samserve.context import RequestContext
from samserve.engines.fake import FakeEngine
from samserve.segmentation.automask import filters
from samserve.segmentation.automask.candidates import Candidate, CropView, DeferredMask, over_budget
from samserve.types import CocoRle, Size

from tests.segmentation.use_cases import RecordingWorkers, UseCases, image_of

MEGAPIXEL = 1 << 20


def view_of(pixels: int) -> CropView:
    return cast("CropView", SimpleNamespace(plan=SimpleNamespace(size=Size(1, pixels))))


@pytest.mark.parametrize(
    ("megapixels", "lengths"),
    [(0.3, [16] * 3), (2, [16] * 3), (12, [10, 10, 10, 10, 8]), (48, [2] * 24)],
)
def test_large_images_have_few_masks_in_a_piece(megapixels: float, lengths: list[int]) -> None:
    passed = [filters.Passed(row, cast("Any", None), 0.9) for row in range(48)]

    pieces = filters.pieces(passed, view_of(int(megapixels * MEGAPIXEL)))

    assert [len(piece) for piece in pieces] == lengths
    assert [each.row for piece in pieces for each in piece] == list(range(48))


def test_an_image_above_the_size_of_a_piece_has_one_mask_in_each() -> None:
    passed = [filters.Passed(row, cast("Any", None), 0.9) for row in range(3)]

    assert len(filters.pieces(passed, view_of(1 << 30))) == 3


def candidates_of(sizes: list[int]) -> list[Candidate]:
    """Return candidates whose logits have these bytes; of 0 bytes, with run lengths."""
    rle = CocoRle(Size(1, 1), "1")
    pixels = [
        cast("DeferredMask", DeferredMask(cast("Any", SimpleNamespace(nbytes=size)), view_of(1)))
        if size
        else rle
        for size in sizes
    ]
    return [
        Candidate((0, 0, 1, 1), 1, 0.9, 0.9, (0, 0), cast("Any", None), each) for each in pixels
    ]


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ([10, 20, 30], []),
        ([10, 60, 50], [1]),
        ([70, 60, 0, 65], [0, 3]),
        ([0, 0], []),
        ([101], [0]),
    ],
)
def test_the_largest_logits_become_run_lengths(sizes: list[int], chosen: list[int]) -> None:
    assert over_budget(candidates_of(sizes), 100) == chosen


class StopAtFirstPiece(RecordingWorkers):
    """Cancels a call when its first piece is about to start, as if its client disconnected."""

    cancel: Callable[[], Any]

    async def run(self, context: RequestContext, function: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(function, "func", None) is filters.filter_piece:
            self.cancel()
        return await super().run(context, function, *args, **kwargs)


async def test_a_call_that_ends_stops_between_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_PIXELS_PER_PIECE", 1)
    computed: list[int] = []
    original = filters.filter_piece
    workers = StopAtFirstPiece()

    def counted(*args: Any) -> Any:
        computed.append(1)
        return original(*args)

    monkeypatch.setattr(filters, "filter_piece", counted)
    use_cases = UseCases(FakeEngine(), workers)
    options = {"points_per_side": 8, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}

    async def drain() -> None:
        blank = image_of(np.zeros((80, 90, 3), np.uint8))
        async for _ in use_cases.automasker.generate(blank, "", options, RequestContext()):
            pass

    task = asyncio.create_task(drain())
    workers.cancel = task.cancel
    with pytest.raises(asyncio.CancelledError):
        await task
    await use_cases.aclose()

    assert len(computed) < 8 * 3
