"""Fake engines with faults, for tests in several folders.

All of them run the warm-up as `FakeEngine` does.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

from samserve.context import RequestContext
from samserve.engines.base import DecoderOutput, EncoderInput, PromptBatch
from samserve.engines.fake import MODEL, FakeEngine
from samserve.memory.slot import Slot
from samserve.scheduling.fair_semaphore import FairSemaphore
from samserve.security.principal import WARM_UP
from samserve.types import Embedding

from tests.support.waiting import until

SMALL_MODEL = replace(MODEL, image_size=256, mask_size=64)
"""A fake model of small images and masks, for fast inferences."""


async def wait_for_encodes(engine: FakeEngine, count: int) -> None:
    """Wait until *count* encodes have begun, in addition to the one of the warm-up."""
    await until(lambda: engine.counts["encode_begun"] >= 1 + count)


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


class PausedEngine(FakeEngine):
    """Encodes wait for ``go``; ``waiting`` is set once an encode waits."""

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
    """Is not ready while ``unavailable``."""

    unavailable = False

    async def ready(self) -> bool:
        return not self.unavailable


class BusyEngine(FakeEngine):
    """Decodes one at a time, each only once *clients* calls want a decode, while ``under_load``.

    So all clients except the one that is served wait, however slow the machine is.
    """

    def __init__(self, clients: int) -> None:
        super().__init__(model=SMALL_MODEL)
        self.under_load = False
        self.served: list[str] = []
        """Tenants in the order in which they were served under load."""
        self.waited_for: dict[str, list[int]] = {}
        """By tenant: the number of decodes that each of its decodes waited for."""
        self._clients = clients
        self._slot = FairSemaphore(1)

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        if self.under_load:
            await self._wait_for_slot(context)
        return await super().decode(model, embedding, prompts, context)

    async def _wait_for_slot(self, context: RequestContext) -> None:
        before = len(self.served)
        async with self._slot.acquire(context):
            await until(self._all_others_wait, poll_s=0.001)
            tenant = context.tenant
            self.waited_for.setdefault(tenant, []).append(len(self.served) - before)
            self.served.append(tenant)

    def _all_others_wait(self) -> bool:
        return self._slot.waiting >= self._clients - 1 or not self.under_load

    def shares(self, runs: slice) -> Counter[str]:
        """Count the decodes of each tenant among *runs* of those under load."""
        return Counter(self.served[runs])
