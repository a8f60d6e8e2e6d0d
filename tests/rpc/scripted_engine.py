"""An engine whose behaviour depends on the request id, and requests for it."""

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

from tests import sample_images
from tests.support.clock import Clock
from tests.support.waiting import until

# The duration of a run by the clock of the engine.
ENCODE_S, DECODE_S = 1.25, 0.5


class ScriptedEngine(FakeEngine):
    """Blocks, fails, or is unavailable from the second run on, by a prefix of the request id.

    The prefixes are ``blocked``, ``breaks`` and ``unavailable``.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__()
        self._clock = clock or Clock()
        self.blocked: set[str] = set()
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
        if request_id.startswith("blocked"):
            self.blocked.add(request_id)
            await asyncio.Event().wait()
        if request_id.startswith("breaks"):
            raise RuntimeError('internal secret\n{"event": "rpc"}')
        if request_id.startswith("unavailable") and request_id in self._ran:
            raise EngineUnavailable("Triton is unavailable")
        self._ran.add(request_id)
        self._clock.now += seconds

    async def wait_until_blocked(self, request_id: str) -> None:
        """Wait until a call is blocked in the engine."""
        await until(lambda: request_id in self.blocked)


def with_id(request_id: str) -> dict[str, Any]:
    """Return the arguments of a call with this request id."""
    return {"metadata": (("x-request-id", request_id),)}


def embed_request(seed: int = 0, **fields: Any) -> pb.EmbedRequest:
    return pb.EmbedRequest(image=sample_images.image(seed=seed), **fields)


def predict_request(embedding_id: str, **fields: Any) -> pb.PredictRequest:
    return pb.PredictRequest(
        embedding_id=embedding_id, prompts=[sample_images.point_prompt()], **fields
    )


def automask_request(embedding_id: str) -> pb.AutoMaskRequest:
    """Return a request for a search of four runs."""
    options = pb.AutoMaskOptions(points_per_side=8, points_per_batch=16)
    return pb.AutoMaskRequest(embedding_id=embedding_id, options=options)
