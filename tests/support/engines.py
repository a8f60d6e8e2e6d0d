"""Fake engines with faults that more than one folder of tests needs.

All of them do the warm-up as `FakeEngine` does.
"""

from __future__ import annotations

import asyncio

from samserve.context import RequestContext
from samserve.engines.base import DecoderOutput, EncoderInput, PromptBatch
from samserve.engines.fake import FakeEngine
from samserve.principal import WARM_UP
from samserve.stores.base import Slot
from samserve.types import Embedding


class BrokenEngine(FakeEngine):
    """Raises an error for every encode, decode or both."""

    def __init__(self, error: Exception, *, encode: bool = False, decode: bool = False) -> None:
        super().__init__()
        self._error = error
        self._encode, self._decode = encode, decode

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        if self._encode and context.principal is not WARM_UP:
            raise self._error
        await super().encode(model, image, into, context)

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        if self._decode and context.principal is not WARM_UP:
            raise self._error
        return await super().decode(model, embedding, prompts, context)


class HeldEngine(FakeEngine):
    """Encodes wait for ``go``; ``waiting`` is set once one does."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.waiting = asyncio.Event()

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        if context.principal is not WARM_UP:
            self.waiting.set()
            await self.go.wait()
        await super().encode(model, image, into, context)


class UnavailableEngine(FakeEngine):
    """Is not ready while ``away``."""

    away = False

    async def ready(self) -> bool:
        return not self.away
