"""An engine that does what the request id says, and requests for it."""

from __future__ import annotations

import asyncio
from typing import Any

from samserve.context import RequestContext
from samserve.engines.base import DecoderOutput, EncoderInput, PromptBatch
from samserve.engines.fake import FakeEngine
from samserve.errors import EngineUnavailable
from samserve.memory.slot import Slot
from samserve.types import Embedding
from samserve.v1 import samserve_pb2 as pb

from tests import pictures
from tests.support.clock import Clock
from tests.support.waiting import until

# What a run takes by the clock of the engine.
ENCODE_S, DECODE_S = 1.25, 0.5


class Moody(FakeEngine):
    """Never ends, breaks, or is away from the second run on, if the request id begins so."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__()
        self._clock = clock or Clock()
        self.endless: set[str] = set()
        self._ran: set[str] = set()

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        await self._behave(context.request_id, ENCODE_S)
        await super().encode(model, image, into, context)

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        await self._behave(context.request_id, DECODE_S)
        return await super().decode(model, embedding, prompts, context)

    async def _behave(self, request_id: str, seconds: float) -> None:
        if request_id.startswith("endless"):
            self.endless.add(request_id)
            await asyncio.Event().wait()
        if request_id.startswith("breaks"):
            raise RuntimeError('secret of the house\n{"event": "call"}')
        if request_id.startswith("away") and request_id in self._ran:
            raise EngineUnavailable("the model server cannot be reached")
        self._ran.add(request_id)
        self._clock.now += seconds

    async def stuck(self, request_id: str) -> None:
        """Wait until a call has come to what never ends."""
        await until(lambda: request_id in self.endless)


def named(request_id: str) -> dict[str, Any]:
    """How a call is made that has this id."""
    return {"metadata": (("x-request-id", request_id),)}


def embed(seed: int = 0, **fields: Any) -> pb.EmbedRequest:
    return pb.EmbedRequest(image=pictures.image(seed=seed), **fields)


def click(embedding_id: str, **fields: Any) -> pb.PredictRequest:
    return pb.PredictRequest(embedding_id=embedding_id, prompts=[pictures.click()], **fields)


def grid(embedding_id: str) -> pb.AutoMaskRequest:
    """A search of four runs."""
    options = pb.AutoMaskOptions(points_per_side=8, points_per_batch=16)
    return pb.AutoMaskRequest(embedding_id=embedding_id, options=options)
