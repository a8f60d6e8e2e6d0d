"""What calls meet when the weights of a model are replaced while they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace

import pytest
from samserve.context import RequestContext
from samserve.engines.base import DecoderOutput, EncoderInput, PromptBatch
from samserve.engines.fake import MODEL, FakeEngine
from samserve.engines.weights import weights_changed
from samserve.errors import EmbeddingNotFound, EngineUnavailable, WeightsChanged
from samserve.memory.slot import Slot
from samserve.segmentation.encode import EmbeddingLease
from samserve.segmentation.predict import PredictOptions
from samserve.segmentation.sources import EmbeddingRef, ImageSource, PendingEmbedding
from samserve.segmentation.warmup import warm_up
from samserve.system.startup_retry import StartupRetry
from samserve.types import (
    Embedding,
    EmbeddingFacts,
    EmbeddingKey,
    Label,
    ModelInfo,
    Point,
    Prompt,
)

from tests.segmentation.use_cases import UseCases, blank

OLD, NEW = (replace(MODEL, encoder_digest=name) for name in ("old", "new"))
CLICK = (Prompt(points=(Point(5, 5, Label.FOREGROUND),)),)


class Replaced(FakeEngine):
    """Runs what is loaded, which it knows of only after it has looked.

    *sees* is what that look shows: while a model loads, it may be the old one still.
    """

    def __init__(self) -> None:
        super().__init__(model=OLD)
        self.loaded = self.sees = self.known = OLD
        self.looks = 0
        self.before_each_run: Callable[[], None] = lambda: None

    def load(self, model: ModelInfo, *, seen: bool = True) -> None:
        """Load other weights behind the gateway's back."""
        self.loaded = model
        self.sees = model if seen else self.known

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        return {self.known.name: self.known}

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        await super().encode(model, image, into, context)
        self._check(into.facts)

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        output = await super().decode(model, embedding, prompts, context)
        self._check(embedding.facts)
        return output

    def _check(self, facts: EmbeddingFacts) -> None:
        self.before_each_run()
        if facts.encoder_digest != self.loaded.encoder_digest:
            self.looks += 1
            self.known = self.sees
            raise weights_changed(facts.model_name)


class Gateway(UseCases[Replaced]):
    """The use cases on an engine whose weights change."""

    async def embed(self, seed: int = 0) -> EmbeddingLease:
        async with self.embeddings.lease(image(seed), "", RequestContext()) as leased:
            return leased

    async def click(self, source: EmbeddingRef | ImageSource) -> EmbeddingLease:
        options = PredictOptions(mask_format=None, low_res_logits=True)
        answer = await self.predictor.predict(source, "", CLICK, options, RequestContext())
        return answer.lease

    async def stored(self, embedding_id: str) -> str:
        """The digest of what is stored under an id; empty if nothing is."""
        try:
            async with self.store.lease(EmbeddingKey("default", embedding_id)) as found:
                return found.facts.encoder_digest
        except EmbeddingNotFound:
            return ""


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    gateway = Gateway(Replaced())
    yield gateway
    await gateway.aclose()


def image(seed: int = 0) -> ImageSource:
    return blank(grey=seed)


async def test_an_image_is_encoded_again_and_its_id_is_of_the_new_weights(
    gateway: Gateway,
) -> None:
    old = await gateway.embed()
    gateway.engine.load(NEW)
    new = await gateway.embed(1)
    both = await asyncio.gather(gateway.embed(), gateway.embed())

    assert (old.model, new.model) == (OLD, NEW)
    assert await gateway.stored(new.embedding_id) == "new"
    # The old one is of the old weights still, and a new one of the same image beside it.
    assert await gateway.stored(old.embedding_id) == "old"
    assert both[0].embedding_id == both[1].embedding_id != old.embedding_id
    assert gateway.engine.looks == 1
    assert gateway.store.stats().entries == 3


async def test_callers_who_joined_the_old_weights_share_one_run_of_the_new(
    gateway: Gateway,
) -> None:
    go_on = asyncio.Event()
    gateway.engine.hold(go_on)
    callers = [asyncio.create_task(gateway.embed()) for _ in range(3)]
    while not gateway.engine.counts["encode_begun"]:
        await asyncio.sleep(0)
    gateway.engine.load(NEW)
    go_on.set()
    leased = await asyncio.gather(*callers)

    assert {each.model.encoder_digest for each in leased} == {"new"}
    assert len({each.embedding_id for each in leased}) == 1
    assert gateway.engine.counts["encode_finished"] == 2
    assert gateway.store.stats().entries == 1


async def test_while_only_one_network_is_replaced_calls_are_to_be_repeated(
    gateway: Gateway,
) -> None:
    old = await gateway.embed()
    gateway.engine.load(NEW, seen=False)
    for call in (
        gateway.embed(1),
        gateway.click(EmbeddingRef(old.embedding_id)),
        gateway.click(image(2)),
    ):
        with pytest.raises(WeightsChanged) as failure:
            await call
        assert failure.value.retry_after_s == 1.0
    assert gateway.store.stats().entries == 1

    gateway.engine.load(NEW)
    assert (await gateway.embed(1)).model is NEW


async def test_servers_that_contradict_each_other_do_not_keep_a_call_busy(
    gateway: Gateway,
) -> None:
    engine = gateway.engine

    def other_answers() -> None:
        # Whatever the gateway has seen last, the next run is of the other weights.
        engine.loaded = engine.sees = NEW if engine.known is OLD else OLD

    engine.before_each_run = other_answers
    with pytest.raises(WeightsChanged):
        await gateway.embed()

    assert engine.counts["encode_finished"] == 3
    assert gateway.store.stats().entries == 0


async def test_a_click_is_never_answered_by_other_weights_than_made_its_embedding(
    gateway: Gateway,
) -> None:
    old = await gateway.embed()
    gateway.engine.load(NEW)
    for _ in range(2):
        with pytest.raises(EmbeddingNotFound):
            await gateway.click(EmbeddingRef(old.embedding_id))
    # After that nothing has to be found out by a run.
    assert gateway.engine.looks == gateway.engine.counts["decode_begun"] == 1


async def test_a_click_on_an_image_whose_embedding_is_old_is_to_be_repeated(
    gateway: Gateway,
) -> None:
    await gateway.embed()
    gateway.engine.load(NEW)
    with pytest.raises(WeightsChanged):
        await gateway.click(image())

    assert (await gateway.click(image())).model is NEW


async def test_automask_ends_as_a_click_does(gateway: Gateway) -> None:
    old = await gateway.embed()
    options = {"points_per_side": 2}
    gateway.engine.load(NEW)
    with pytest.raises(EmbeddingNotFound):
        await records(gateway, EmbeddingRef(old.embedding_id), options)
    crops = {**options, "crop_n_layers": 1}
    assert (await records(gateway, image(), crops)).model is NEW
    assert gateway.store.stats().bytes == 2 * MODEL.embedding_bytes


async def records(
    gateway: Gateway, source: EmbeddingRef | ImageSource, options: dict[str, int]
) -> EmbeddingLease:
    search = gateway.automasker.search(source, "", options, RequestContext())
    async with aclosing(search) as events:
        last = [event async for event in events][-1]
    leased: EmbeddingLease = last.lease  # type: ignore[union-attr]  # the last event is the summary
    return leased


async def test_an_embedding_that_was_begun_ahead_is_unknown_if_its_weights_are_gone(
    gateway: Gateway,
) -> None:
    go_on = asyncio.Event()
    gateway.engine.hold(go_on)
    source = image().image
    pending = await gateway.embeddings.prefetch(source, "", RequestContext())
    assert isinstance(pending, PendingEmbedding)
    click = asyncio.create_task(gateway.click(EmbeddingRef(pending.embedding_id)))
    while not gateway.engine.counts["encode_begun"]:
        await asyncio.sleep(0)
    gateway.engine.load(NEW)
    go_on.set()
    with pytest.raises(EmbeddingNotFound):
        await click

    assert await gateway.stored(pending.embedding_id) == ""
    assert (await gateway.embed()).embedding_id != pending.embedding_id


async def test_the_first_inference_is_made_with_the_weights_that_are_there(
    gateway: Gateway,
) -> None:
    gateway.engine.load(NEW)
    await warm_up(gateway.engine, gateway.store, StartupRetry(60, "triton.startup_s"))
    assert gateway.engine.counts["encode_finished"] == 2

    gateway.engine.load(OLD, seen=False)
    with pytest.raises(
        EngineUnavailable, match=r"weights of model 'fake'.*samserve models upgrade REPOSITORY"
    ):
        await warm_up(gateway.engine, gateway.store, StartupRetry(0))
