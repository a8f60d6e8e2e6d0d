"""Calls during which the weights of a model are replaced."""

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
PROMPTS = (Prompt(points=(Point(5, 5, Label.FOREGROUND),)),)


class ReplacedWeightsEngine(FakeEngine):
    """An engine that learns of replaced weights only when a run fails.

    *reported* is the model that its check then returns: while another loads, it may be the old one.
    """

    def __init__(self) -> None:
        super().__init__(model=OLD)
        self.loaded = self.reported = self.known = OLD
        self.checks = 0
        self.before_each_run: Callable[[], None] = lambda: None

    def load(self, model: ModelInfo, *, is_reported: bool = True) -> None:
        """Load other weights without notice to the gateway."""
        self.loaded = model
        self.reported = model if is_reported else self.known

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
            self.checks += 1
            self.known = self.reported
            raise weights_changed(facts.model_name)


class Gateway(UseCases[ReplacedWeightsEngine]):
    """The use cases on an engine whose weights change."""

    async def embed(self, seed: int = 0) -> EmbeddingLease:
        async with self.embeddings.lease(image(seed), "", RequestContext()) as leased:
            return leased

    async def predict(self, source: EmbeddingRef | ImageSource) -> EmbeddingLease:
        options = PredictOptions(mask_format=None, low_res_logits=True)
        prediction = await self.predictor.predict(source, "", PROMPTS, options, RequestContext())
        return prediction.lease

    async def cached_digest(self, embedding_id: str) -> str:
        """Return the encoder digest of a cached embedding; empty if there is none."""
        try:
            async with self.cache.lease(EmbeddingKey("default", embedding_id)) as embedding:
                return embedding.facts.encoder_digest
        except EmbeddingNotFound:
            return ""


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    gateway = Gateway(ReplacedWeightsEngine())
    yield gateway
    await gateway.aclose()


def image(seed: int = 0) -> ImageSource:
    return blank(grey=seed)


async def test_image_is_encoded_again_with_an_id_of_the_new_weights(
    gateway: Gateway,
) -> None:
    old = await gateway.embed()
    gateway.engine.load(NEW)
    new = await gateway.embed(1)
    both = await asyncio.gather(gateway.embed(), gateway.embed())

    assert (old.model, new.model) == (OLD, NEW)
    assert await gateway.cached_digest(new.embedding_id) == "new"
    # The old embedding keeps the old weights; the same image has a new one beside it.
    assert await gateway.cached_digest(old.embedding_id) == "old"
    assert both[0].embedding_id == both[1].embedding_id != old.embedding_id
    assert gateway.engine.checks == 1
    assert gateway.cache.stats().entries == 3


async def test_calls_that_joined_the_old_weights_share_one_encode_with_the_new(
    gateway: Gateway,
) -> None:
    resume = asyncio.Event()
    gateway.engine.hold(resume)
    callers = [asyncio.create_task(gateway.embed()) for _ in range(3)]
    while not gateway.engine.counts["encode_begun"]:
        await asyncio.sleep(0)
    gateway.engine.load(NEW)
    resume.set()
    leased = await asyncio.gather(*callers)

    assert {lease.model.encoder_digest for lease in leased} == {"new"}
    assert len({lease.embedding_id for lease in leased}) == 1
    assert gateway.engine.counts["encode_finished"] == 2
    assert gateway.cache.stats().entries == 1


async def test_calls_are_retryable_while_only_one_network_is_replaced(
    gateway: Gateway,
) -> None:
    old = await gateway.embed()
    gateway.engine.load(NEW, is_reported=False)
    for call in (
        gateway.embed(1),
        gateway.predict(EmbeddingRef(old.embedding_id)),
        gateway.predict(image(2)),
    ):
        with pytest.raises(WeightsChanged) as failure:
            await call
        assert failure.value.retry_after_s == 1.0
    assert gateway.cache.stats().entries == 1

    gateway.engine.load(NEW)
    assert (await gateway.embed(1)).model is NEW


async def test_number_of_encodes_is_limited_if_servers_have_different_weights(
    gateway: Gateway,
) -> None:
    engine = gateway.engine

    def switch_weights() -> None:
        # The next run uses other weights than those the gateway read last.
        engine.loaded = engine.reported = NEW if engine.known is OLD else OLD

    engine.before_each_run = switch_weights
    with pytest.raises(WeightsChanged):
        await gateway.embed()

    assert engine.counts["encode_finished"] == 3
    assert gateway.cache.stats().entries == 0


async def test_embedding_of_replaced_weights_is_never_decoded(
    gateway: Gateway,
) -> None:
    old = await gateway.embed()
    gateway.engine.load(NEW)
    for _ in range(2):
        with pytest.raises(EmbeddingNotFound):
            await gateway.predict(EmbeddingRef(old.embedding_id))
    # After that no further run is needed to detect it.
    assert gateway.engine.checks == gateway.engine.counts["decode_begun"] == 1


async def test_predict_with_an_image_whose_embedding_is_old_is_retryable(
    gateway: Gateway,
) -> None:
    await gateway.embed()
    gateway.engine.load(NEW)
    with pytest.raises(WeightsChanged):
        await gateway.predict(image())

    assert (await gateway.predict(image())).model is NEW


async def test_automask_handles_replaced_weights_as_predict_does(gateway: Gateway) -> None:
    old = await gateway.embed()
    options = {"points_per_side": 2}
    gateway.engine.load(NEW)
    with pytest.raises(EmbeddingNotFound):
        await records(gateway, EmbeddingRef(old.embedding_id), options)
    crops = {**options, "crop_n_layers": 1}
    assert (await records(gateway, image(), crops)).model is NEW
    assert gateway.cache.stats().bytes == 2 * MODEL.embedding_bytes


async def records(
    gateway: Gateway, source: EmbeddingRef | ImageSource, options: dict[str, int]
) -> EmbeddingLease:
    search = gateway.automasker.generate(source, "", options, RequestContext())
    async with aclosing(search) as events:
        last = [event async for event in events][-1]
    leased: EmbeddingLease = last.lease  # type: ignore[union-attr]  # the last event is the summary
    return leased


async def test_prefetched_embedding_is_not_found_if_its_weights_were_replaced(
    gateway: Gateway,
) -> None:
    resume = asyncio.Event()
    gateway.engine.hold(resume)
    source = image().image
    pending = await gateway.embeddings.prefetch(source, "", RequestContext())
    assert isinstance(pending, PendingEmbedding)
    predicting = asyncio.create_task(gateway.predict(EmbeddingRef(pending.embedding_id)))
    while not gateway.engine.counts["encode_begun"]:
        await asyncio.sleep(0)
    gateway.engine.load(NEW)
    resume.set()
    with pytest.raises(EmbeddingNotFound):
        await predicting

    assert await gateway.cached_digest(pending.embedding_id) == ""
    assert (await gateway.embed()).embedding_id != pending.embedding_id


async def test_warm_up_uses_the_loaded_weights(
    gateway: Gateway,
) -> None:
    gateway.engine.load(NEW)
    await warm_up(gateway.engine, gateway.cache, StartupRetry(60, "triton.startup_timeout_s"))
    assert gateway.engine.counts["encode_finished"] == 2

    gateway.engine.load(OLD, is_reported=False)
    with pytest.raises(
        EngineUnavailable, match=r"weights of model 'fake'.*samserve models upgrade REPOSITORY"
    ):
        await warm_up(gateway.engine, gateway.cache, StartupRetry(0))
