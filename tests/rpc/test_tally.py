"""What the metrics say of how calls ended is what the clients have seen."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import grpc
import pytest
from samserve.app import Running
from samserve.calls import access_log
from samserve.context import RequestContext
from samserve.engines.base import DecoderOutput, EncoderInput, PromptBatch
from samserve.engines.fake import FakeEngine
from samserve.errors import EngineUnavailable
from samserve.memory.slot import Slot
from samserve.types import Embedding
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import pictures
from tests.conftest import serving, settings_with
from tests.support.waiting import until

ROUNDS = 6
AT_ONCE = 24
Tally = Counter[tuple[str, str]]
Step = Callable[[int], Awaitable[tuple[str, str]]]


class Moody(FakeEngine):
    """Never ends the encoding of pictures of this height; a grid fails from its second decode."""

    ENDLESS = 33

    def __init__(self) -> None:
        super().__init__()
        self.endless = 0
        self._grids: Counter[str] = Counter()

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        # Resized so that the longer side, 66, fills the frame.
        if (image.valid.height, image.valid.width) == (512, 1024):
            self.endless += 1
            await asyncio.Event().wait()
        await super().encode(model, image, into, context)

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        if context.request_id.startswith("fails"):
            self._grids[context.request_id] += 1
            if self._grids[context.request_id] > 1:
                raise EngineUnavailable("the model server cannot be reached")
        if context.request_id.startswith("breaks"):
            raise RuntimeError("secret of the house")
        return await super().decode(model, embedding, prompts, context)


class Script:
    """One of each kind of call; each step tells how its call ended, as the client has seen it."""

    def __init__(self, stub: SegmentationServiceStub, embedding_id: str) -> None:
        self._stub = stub
        self._id = embedding_id

    async def embeds(self, index: int) -> tuple[str, str]:
        image = pictures.image(40, 64, seed=index)
        return "Embed", await ended(self._stub.Embed(pb.EmbedRequest(image=image)))

    async def predicts(self, index: int) -> tuple[str, str]:
        return "Predict", await ended(self._stub.Predict(self._click()))

    async def breaks(self, index: int) -> tuple[str, str]:
        call = self._stub.Predict(self._click(), metadata=(("x-request-id", f"breaks-{index}"),))
        return "Predict", await ended(call)

    async def sends_rubbish(self, index: int) -> tuple[str, str]:
        call = self._stub.Embed(pb.EmbedRequest(image=pb.Image(encoded=b"rubbish")))
        return "Embed", await ended(call)

    async def clicks_on_nothing(self, index: int) -> tuple[str, str]:
        wish = pb.PredictRequest(embedding_id=f"{index:064x}", prompts=[pictures.click()])
        return "Predict", await ended(self._stub.Predict(wish))

    async def names_no_model(self, index: int) -> tuple[str, str]:
        wish = pb.EmbedRequest(image=pictures.image(), model="nobody")
        return "Embed", await ended(self._stub.Embed(wish))

    async def cancels(self, index: int) -> tuple[str, str]:
        call = self._stub.Embed(pb.EmbedRequest(image=endless(index)))
        # Some before anything has been done, some when the encoder runs.
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(call.initial_metadata()), 0.01 * (index % 4))
        call.cancel()
        return "Embed", await ended(call)

    async def is_late(self, index: int) -> tuple[str, str]:
        wish = pb.EmbedRequest(image=endless(1000 + index))
        # gRPC rounds what it sends of timeouts over a second up to hundredths.
        timeout = 1.001 + 0.001 * index if index % 2 else 0.9 + 0.0137 * index
        return "Embed", await ended(self._stub.Embed(wish, timeout=timeout))

    async def finds_all(self, index: int) -> tuple[str, str]:
        return "AutoMask", await self._automask(f"works-{index}")

    async def fails_midway(self, index: int) -> tuple[str, str]:
        return "AutoMask", await self._automask(f"fails-{index}")

    async def leaves_midway(self, index: int) -> tuple[str, str]:
        call = self._stub.AutoMask(self._grid())
        async for _ in call:
            call.cancel()
            break
        with suppress(asyncio.CancelledError):
            await call.code()
        return "AutoMask", (await call.code()).name

    async def deletes(self, index: int) -> tuple[str, str]:
        wish = pb.DeleteEmbeddingRequest(embedding_id=f"{index:064x}")
        return "DeleteEmbedding", await ended(self._stub.DeleteEmbedding(wish))

    def steps(self) -> list[Step]:
        """All of them but `is_late`."""
        return [
            *(self.embeds, self.predicts, self.breaks, self.sends_rubbish, self.clicks_on_nothing),
            *(self.names_no_model, self.cancels, self.finds_all, self.fails_midway),
            *(self.leaves_midway, self.deletes),
        ]

    def _click(self) -> pb.PredictRequest:
        return pb.PredictRequest(embedding_id=self._id, prompts=[pictures.click()])

    def _grid(self) -> pb.AutoMaskRequest:
        request = pb.AutoMaskRequest(embedding_id=self._id)
        request.options.points_per_side = 8
        request.options.points_per_batch = 16
        return request

    async def _automask(self, request_id: str) -> str:
        call = self._stub.AutoMask(self._grid(), metadata=(("x-request-id", request_id),))
        with suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pass
        return (await call.code()).name


def endless(seed: int) -> pb.Image:
    return pictures.image(Moody.ENDLESS, 2 * Moody.ENDLESS, seed=seed)


async def ended(call: grpc.aio.UnaryUnaryCall) -> str:
    with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        await call
    return (await call.code()).name


def told(service: Running) -> Tally:
    """What the metrics say, without what has not happened."""
    return Counter(
        {
            (sample.labels["grpc_method"], sample.labels["grpc_code"]): int(sample.value)
            for family in service.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "grpc_server_handled_total" and sample.value
        }
    )


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
async def test_codes_are_counted_as_clients_see_them(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine a call is on its way for long.  Those that are cancelled have a minute.
    monkeypatch.setattr(access_log, "_ON_THE_WAY_S", 1.0)
    settings = settings_with(
        engine={"kind": "fake"}, admission={"automask": 100}, log={"level": "error"}
    )
    engine = Moody()
    async with serving(settings, engine=engine) as (service, stub):
        first = await stub.Embed(pb.EmbedRequest(image=pictures.image()))
        script = Script(stub, first.embedding.id)
        steps = [(step, index) for index in range(ROUNDS) for step in script.steps()]
        random.Random(seed).shuffle(steps)

        places = asyncio.Semaphore(AT_ONCE)

        async def taken(step: Step, index: int) -> tuple[str, str]:
            async with places:
                return await step(index)

        # First, so that they arrive: what never left the client is no call to the server.
        late = [asyncio.create_task(script.is_late(index)) for index in range(ROUNDS)]
        await until(lambda: engine.endless == ROUNDS)
        seen: Tally = Counter(await asyncio.gather(*late, *(taken(*each) for each in steps)))
        seen["Embed", "OK"] += 1

        await until(lambda: told(service).total() == seen.total())
        assert told(service) == seen
        assert seen["Embed", "CANCELLED"] == seen["AutoMask", "CANCELLED"] == ROUNDS
        assert seen["Embed", "DEADLINE_EXCEEDED"] == seen["AutoMask", "UNAVAILABLE"] == ROUNDS
        assert seen["Predict", "INTERNAL"] == ROUNDS
        started = sum(
            sample.value
            for family in service.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "grpc_server_started_total"
        )
        assert started == seen.total()
