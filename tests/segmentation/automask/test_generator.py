"""The run of AutoMask: image decoding, cancellation, and batches of records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest
from samserve import images
from samserve.context import RequestContext
from samserve.engines.base import DecoderOutput, PromptBatch
from samserve.engines.fake import FakeEngine
from samserve.errors import InvalidRequest
from samserve.segmentation.automask import filters, generator
from samserve.segmentation.automask.events import AutoMaskRecord, Event, Records
from samserve.segmentation.sources import EmbeddingRef, Source
from samserve.types import Embedding

from tests.segmentation.use_cases import RecordingWorkers, UseCases, blank
from tests.support.waiting import until

KEEP_ALL = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "points_per_side": 2}
CROPS = {**KEEP_ALL, "crop_n_layers": 1}


class BlockedDecoder(FakeEngine):
    """Completes *runs* decodes and blocks all later ones until they are cancelled."""

    def __init__(self, runs: int) -> None:
        super().__init__()
        self._runs = runs

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        if self.counts["decode_finished"] == self._runs:
            await asyncio.Event().wait()
        return await super().decode(model, embedding, prompts, context)


class BlockedFilter(RecordingWorkers):
    """Blocks the filtering of batches until ``resume`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.resume = asyncio.Event()

    async def run(
        self, context: RequestContext, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if function is filters.passed_iou:
            await self.resume.wait()
        return await super().run(context, function, *args, **kwargs)


@pytest.fixture
async def use_cases() -> AsyncIterator[UseCases[FakeEngine]]:
    use_cases = UseCases(FakeEngine())
    yield use_cases
    await use_cases.aclose()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the list of images that are decoded."""
    images_decoded: list[object] = []
    read = images.read

    def record_read(image: Any, limits: Any) -> Any:
        images_decoded.append(image)
        return read(image, limits)

    monkeypatch.setattr(images, "read", record_read)
    return images_decoded


async def events(use_cases: UseCases[Any], source: Source, options: dict[str, Any]) -> list[Event]:
    search = use_cases.automasker.generate(source, "", options, RequestContext())
    async with aclosing(search) as stream:
        return [event async for event in stream]


def batches(found: list[Event]) -> list[tuple[AutoMaskRecord, ...]]:
    return [event.records for event in found if isinstance(event, Records)]


async def test_image_with_crops_is_decoded_once(
    use_cases: UseCases[FakeEngine], decoded: list[object]
) -> None:
    await events(use_cases, blank(), CROPS)
    assert len(decoded) == 1

    # Its embedding is cached now, but the crops need the pixels.
    await events(use_cases, blank(), CROPS)
    assert len(decoded) == 2
    assert use_cases.engine.counts["encode_begun"] == 1 + 4 + 4


async def test_image_with_a_cached_embedding_is_not_decoded_without_crops(
    use_cases: UseCases[FakeEngine], decoded: list[object]
) -> None:
    for _ in range(2):
        await events(use_cases, blank(), KEEP_ALL)

    assert len(decoded) == 1


async def test_call_that_joined_an_encode_without_keep_pixels_decodes_the_image(
    use_cases: UseCases[FakeEngine], decoded: list[object]
) -> None:
    embed = use_cases.embeddings.lease(blank(), "", RequestContext())
    engine, resume = use_cases.engine, asyncio.Event()
    engine.hold(resume)
    first = asyncio.create_task(embed.__aenter__())
    await until(lambda: engine.counts["encode_begun"] == 1)
    search = asyncio.create_task(events(use_cases, blank(), CROPS))
    resume.set()
    lease = await first
    await search
    await embed.__aexit__(None, None, None)

    assert lease.pixels is None
    assert len(decoded) == 2


async def test_batch_is_filtered_while_the_next_is_decoded() -> None:
    workers = BlockedFilter()
    use_cases = UseCases(FakeEngine(), workers, max_prompts_per_batch=1)
    search = asyncio.create_task(events(use_cases, blank(), KEEP_ALL))
    # Nothing is filtered yet.
    await until(lambda: use_cases.engine.counts["decode_finished"] == 2)
    workers.resume.set()
    found = await search
    await use_cases.aclose()

    assert sum(map(len, batches(found))) > 0


async def test_masks_spilled_to_run_lengths_are_the_same(
    use_cases: UseCases[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    deferred = batches(await events(use_cases, blank(80, 90), CROPS))
    monkeypatch.setattr(generator, "_MAX_LOGITS_BYTES", 0)
    spilled = batches(await events(use_cases, blank(80, 90), CROPS))

    assert spilled == deferred != []


async def test_records_are_sent_in_batches_of_limited_size(
    use_cases: UseCases[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**KEEP_ALL, "points_per_side": 4, "box_nms_thresh": 1.0}
    whole = await events(use_cases, blank(80, 90), options)
    monkeypatch.setattr(generator, "_RECORDS_PER_EVENT", 3)
    batched = await events(use_cases, blank(80, 90), options)

    (all_records,) = batches(whole)
    assert len(all_records) > 6
    assert max(map(len, batches(batched))) == 3
    assert sum(batches(batched), ()) == all_records


async def test_cancelled_call_releases_the_memory_of_a_crop() -> None:
    use_cases = UseCases(BlockedDecoder(5), max_prompts_per_batch=1)
    embedding_bytes = use_cases.embeddings.model("").embedding_bytes
    search = asyncio.create_task(events(use_cases, blank(), CROPS))
    await until(lambda: use_cases.engine.counts["decode_finished"] == 5)
    await until(lambda: use_cases.cache.stats().bytes == 2 * embedding_bytes)
    search.cancel()
    await asyncio.gather(search, return_exceptions=True)
    after = use_cases.cache.stats().bytes
    await use_cases.aclose()

    assert search.cancelled()
    assert after == embedding_bytes


async def test_crops_require_the_image(use_cases: UseCases[FakeEngine]) -> None:
    async with use_cases.embeddings.lease(blank(), "", RequestContext()) as lease:
        source = EmbeddingRef(lease.embedding_id)

    with pytest.raises(InvalidRequest) as error:
        await events(use_cases, source, CROPS)

    assert [each.field for each in error.value.violations] == ["options.crop_n_layers"]
