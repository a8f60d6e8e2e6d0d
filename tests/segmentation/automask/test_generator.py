"""How AutoMask runs: what it decodes, how it ends, and how records arrive."""

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

from tests.segmentation.use_cases import NotedWorkers, UseCases, blank
from tests.support.waiting import until

KEEP_ALL = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "points_per_side": 2}
CROPS = {**KEEP_ALL, "crop_n_layers": 1}


class HeldDecoder(FakeEngine):
    """Runs the decoder so often, and holds every other run until it is cancelled."""

    def __init__(self, runs: int) -> None:
        super().__init__()
        self._runs = runs

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        if self.counts["decode_finished"] == self._runs:
            await asyncio.Event().wait()
        return await super().decode(model, embedding, prompts, context)


class HeldFilter(NotedWorkers):
    """Filters batches once ``go`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def run(
        self, context: RequestContext, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if function is filters.filter_batch:
            await self.go.wait()
        return await super().run(context, function, *args, **kwargs)


@pytest.fixture
async def use_cases() -> AsyncIterator[UseCases[FakeEngine]]:
    use_cases = UseCases(FakeEngine())
    yield use_cases
    await use_cases.aclose()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Images that were decoded."""
    noted: list[object] = []
    decode = images.decode

    def note(image: Any, limits: Any) -> Any:
        noted.append(image)
        return decode(image, limits)

    monkeypatch.setattr(images, "decode", note)
    return noted


async def events(use_cases: UseCases[Any], source: Source, given: dict[str, Any]) -> list[Event]:
    search = use_cases.automasker.search(source, "", given, RequestContext())
    async with aclosing(search) as found:
        return [event async for event in found]


def batches(found: list[Event]) -> list[tuple[AutoMaskRecord, ...]]:
    return [event.records for event in found if isinstance(event, Records)]


async def test_an_image_of_which_crops_are_cut_is_decoded_once(
    use_cases: UseCases[FakeEngine], decoded: list[object]
) -> None:
    await events(use_cases, blank(), CROPS)
    assert len(decoded) == 1

    # Its embedding is stored now, but the crops need the pixels.
    await events(use_cases, blank(), CROPS)
    assert len(decoded) == 2
    assert use_cases.engine.counts["encode_begun"] == 1 + 4 + 4


async def test_an_image_whose_embedding_is_stored_is_not_decoded_without_crops(
    use_cases: UseCases[FakeEngine], decoded: list[object]
) -> None:
    for _ in range(2):
        await events(use_cases, blank(), KEEP_ALL)

    assert len(decoded) == 1


async def test_callers_who_share_an_encode_decode_for_themselves_what_is_not_kept_for_them(
    use_cases: UseCases[FakeEngine], decoded: list[object]
) -> None:
    embed = use_cases.embeddings.lease(blank(), "", RequestContext())
    engine, go = use_cases.engine, asyncio.Event()
    engine.hold(go)
    first = asyncio.create_task(embed.__aenter__())
    await until(lambda: engine.counts["encode_begun"] == 1)
    search = asyncio.create_task(events(use_cases, blank(), CROPS))
    go.set()
    lease = await first
    await search
    await embed.__aexit__(None, None, None)

    assert lease.pixels is None
    assert len(decoded) == 2


async def test_one_batch_is_filtered_while_the_next_is_decoded() -> None:
    workers = HeldFilter()
    use_cases = UseCases(FakeEngine(), workers, prompts_per_run=1)
    search = asyncio.create_task(events(use_cases, blank(), KEEP_ALL))
    # Nothing is filtered yet.
    await until(lambda: use_cases.engine.counts["decode_finished"] == 2)
    workers.go.set()
    found = await search
    await use_cases.aclose()

    assert sum(map(len, batches(found))) > 0


async def test_masks_whose_logits_are_not_kept_are_the_same(
    use_cases: UseCases[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = batches(await events(use_cases, blank(80, 90), CROPS))
    monkeypatch.setattr(generator, "_MAX_DEFERRED", 0)
    spilled = batches(await events(use_cases, blank(80, 90), CROPS))

    assert spilled == kept != []


async def test_records_arrive_in_batches_that_bound_what_is_held(
    use_cases: UseCases[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**KEEP_ALL, "points_per_side": 4, "box_nms_thresh": 1.0}
    whole = await events(use_cases, blank(80, 90), given)
    monkeypatch.setattr(generator, "_RECORDS_PER_EVENT", 3)
    parts = await events(use_cases, blank(80, 90), given)

    (together,) = batches(whole)
    assert len(together) > 6
    assert max(map(len, batches(parts))) == 3
    assert sum(batches(parts), ()) == together


async def test_a_caller_that_leaves_gives_back_the_memory_of_a_crop() -> None:
    use_cases = UseCases(HeldDecoder(5), prompts_per_run=1)
    embedding_bytes = use_cases.embeddings.model("").embedding_bytes
    search = asyncio.create_task(events(use_cases, blank(), CROPS))
    await until(lambda: use_cases.engine.counts["decode_finished"] == 5)
    await until(lambda: use_cases.store.stats().bytes == 2 * embedding_bytes)
    search.cancel()
    await asyncio.gather(search, return_exceptions=True)
    after = use_cases.store.stats().bytes
    await use_cases.aclose()

    assert search.cancelled()
    assert after == embedding_bytes


async def test_crops_need_the_image(use_cases: UseCases[FakeEngine]) -> None:
    async with use_cases.embeddings.lease(blank(), "", RequestContext()) as lease:
        source = EmbeddingRef(lease.embedding_id)

    with pytest.raises(InvalidRequest) as refused:
        await events(use_cases, source, CROPS)

    assert [each.field for each in refused.value.violations] == ["options.crop_n_layers"]
