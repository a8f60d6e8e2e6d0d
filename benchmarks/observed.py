"""The processes that `benchmarks.observability` measures: gateways, and a receiver of their spans.

Each tells its address on standard output, and a number for each line of standard input: a gateway
its CPU seconds so far, the receiver how many spans have come since the last question.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Self, cast

from samserve import app
from samserve.context import RequestContext
from samserve.engines.base import DecoderOutput, PromptBatch
from samserve.engines.fake import MODEL, FakeEngine
from samserve.rpc.access_log import Entry, Ledger
from samserve.rpc.methods import Method
from samserve.settings import Settings, TraceSettings, load
from samserve.stages import StageClock
from samserve.telemetry import logs
from samserve.telemetry.metrics import Metrics
from samserve.telemetry.metrics.process import ServerMetrics
from samserve.telemetry.metrics.rpc import CallMetrics
from samserve.telemetry.tracing import open_tracing
from samserve.telemetry.tracing.base import Metadata, NoTracing, Tracing
from samserve.types import Embedding

from harness.otlp.receiver import Receiver

SIDE = 256
_SMALL = replace(MODEL, image_size=SIDE, mask_size=SIDE // 4)
_WITH_CLOCK = 5  # the first Embed says more than those that find the embedding


class _Nothing:
    """A clock that always says the same, the block of its stages, and a gauge, that do nothing."""

    current = ""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    def itself(self, *_: object) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    __enter__ = running = branch = stage = following = rename = itself
    in_flight = track_inprogress = itself


class _NoLedger(Ledger):
    """Writes nothing down; without clocks all calls answer what those of the first ones said."""

    has_clock = True

    def __init__(self, metrics: CallMetrics, tracing: Tracing) -> None:
        super().__init__(metrics, tracing)
        self.metrics = cast("Any", _Nothing({}))
        self._trace = NoTracing()
        self._calls: Counter[str] = Counter()
        self._clocks: dict[str, Any] = {}

    def open(self, method: Method, metadata: Metadata | None) -> Entry:
        begins = self.has_clock or self._calls[method.name] < _WITH_CLOCK
        return Entry(method, self._trace, StageClock() if begins else self._clocks[method.name])

    def close(self, entry: Entry, context: RequestContext) -> None:
        name = entry.method.name
        if self._calls[name] < _WITH_CLOCK:
            self._calls[name] += 1
            self._clocks[name] = _Nothing(entry.clock.seconds)


class _QuickEngine(FakeEngine):
    """Always answers what it drew first; counts its runs, as engines with a model do."""

    def __init__(self, metrics: Metrics | None) -> None:
        super().__init__(model=_SMALL)
        self._answer: DecoderOutput | None = None
        self._run = (lambda *_: nullcontext()) if metrics is None else metrics.engine.run

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        if self._answer is None:
            self._answer = await super().decode(model, embedding, prompts, context)
        with self._run("decoder", model):
            return self._answer


def serve(settings: Settings, *, bare: bool, clock: bool) -> None:
    """Run a gateway until standard input ends; tells its CPU seconds, once spans have left."""
    opened: list[Tracing] = []

    async def open_engine(_: Settings, metrics: Metrics) -> FakeEngine:
        return _QuickEngine(None if bare else metrics)

    def remember(settings: TraceSettings) -> Tracing:
        opened.append(open_tracing(settings))
        return opened[-1]

    def spent() -> float:
        if settings.trace.endpoint:
            cast("Any", opened[0])._provider.force_flush()
        return time.process_time()

    async def run() -> None:
        async with app.running(settings) as service:
            gc.collect()
            await asyncio.to_thread(_answer, service.address, spent)

    vars(app).update(open_engine=open_engine, open_tracing=remember)
    if bare:
        vars(app).update(Ledger=_NoLedger)
        _NoLedger.has_clock = clock
        cast("Any", ServerMetrics).lag_observed = lambda _: nullcontext()
    logs.configure(settings.log)
    asyncio.run(run())


def receive() -> None:
    """Receive spans until standard input ends; tells how many came since the last question."""

    def count() -> int:
        found = len(receiver.spans)
        receiver.clear()
        return found

    with Receiver() as receiver:
        _answer(receiver.grpc_address, count)


def _answer(address: str, value: Callable[[], float]) -> None:
    """Tell the address, and the value for each line of standard input."""
    print(address, flush=True)
    for _ in sys.stdin:
        print(value(), flush=True)


def main() -> None:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="?", type=json.loads, help="the gateway's; else receive")
    parser.add_argument("--bare", action="store_true", help="without instruments")
    parser.add_argument("--no-clock", action="store_true", help="without stage clocks, too")
    options = parser.parse_args()
    if options.settings is None:
        receive()
    else:
        serve(load(options.settings), bare=options.bare, clock=not options.no_clock)


if __name__ == "__main__":
    main()
