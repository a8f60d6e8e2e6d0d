"""Fake engines with faults that more than one folder of tests needs.

All of them do the warm-up as `FakeEngine` does.
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
"""A fake model of small images and masks: a run takes next to nothing."""


async def encodes_begun(engine: FakeEngine, count: int) -> None:
    """Wait until so many encodes have begun besides the warm-up's."""
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


class BusyEngine(FakeEngine):
    """Serves one run after the other, each once *clients* want one, as long as ``under_load``.

    So all clients but the one that is served wait, however slow the machine is.
    """

    def __init__(self, clients: int) -> None:
        super().__init__(model=SMALL_MODEL)
        self.under_load = False
        self.served: list[str] = []
        """Tenants, in the order in which they were served under load."""
        self.overtaken: dict[str, list[int]] = {}
        """How many runs went before each, from when it was wanted, by tenant."""
        self._clients = clients
        self._turns = FairSemaphore(1)

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        if self.under_load:
            await self._take_turn(context)
        return await super().decode(model, embedding, prompts, context)

    async def _take_turn(self, context: RequestContext) -> None:
        before = len(self.served)
        async with self._turns.hold(context):
            await until(self._all_others_wait, poll_s=0.001)
            tenant = context.tenant
            self.overtaken.setdefault(tenant, []).append(len(self.served) - before)
            self.served.append(tenant)

    def _all_others_wait(self) -> bool:
        return self._turns.waiting >= self._clients - 1 or not self.under_load

    def shares(self, runs: slice) -> Counter[str]:
        """Count the runs of each tenant among some of those under load."""
        return Counter(self.served[runs])
