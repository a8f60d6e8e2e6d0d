"""Calls without gRPC: a transport of plain values, and a complete pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry
from samserve.calls.access_log import CallRecorder
from samserve.calls.admission import Admission
from samserve.calls.metadata import Metadata
from samserve.calls.methods import METHODS
from samserve.calls.pipeline import Call, CallPipeline
from samserve.calls.status import Failure
from samserve.context import RequestContext
from samserve.security.quotas import Quotas
from samserve.security.setup import open_security
from samserve.settings import Settings, load
from samserve.telemetry.metrics.rpc import CallMetrics
from samserve.telemetry.tracing.base import NoTracing

ROWS = {method.name: method for method in METHODS}


@dataclass
class PlainTransport:
    """One call: what the client sends, and what it receives."""

    metadata: Metadata = ()
    protocol: str = "plain"
    remaining_s: float | None = None
    request: bytes = b"request"
    certificate: tuple[str, ...] = ()
    request_id: str = ""
    was_read: bool = False
    response: list[bytes] = field(default_factory=list)
    failure: Failure | None = None

    def certificate_names(self) -> tuple[str, ...]:
        return self.certificate

    def set_request_id(self, request_id: str) -> None:
        self.request_id = request_id

    async def read(self) -> bytes:
        self.was_read = True
        return self.request

    async def write(self, data: bytes) -> None:
        self.response.append(data)

    async def fail(self, failure: Failure) -> None:
        self.failure = failure

    @property
    def outcome(self) -> tuple[str, str]:
        """The code and reason of the failure."""
        assert self.failure is not None
        return self.failure.code.name, self.failure.reason


Body = Callable[[bytes, RequestContext], Awaitable[bytes]]


async def echo(request: bytes, context: RequestContext) -> bytes:
    return request


class Service:
    """The pipeline as the application builds it, with the bodies of a test."""

    def __init__(self, **settings: Any) -> None:
        self.settings: Settings = load(settings)
        self.security = security = open_security(self.settings)
        self.registry = CollectorRegistry()
        kinds = {method.name: method.kind for method in METHODS}
        self.admission = Admission(self.settings.admission, shared=security.has_tenants)
        self.pipeline = CallPipeline(
            security.authenticator,
            Quotas(security.policy),
            self.admission,
            CallRecorder("plain", CallMetrics(self.registry, "plain", kinds), NoTracing()),
            self.settings.server,
            self.settings.deadlines,
        )

    async def call(
        self, name: str, transport: PlainTransport | None = None, body: Body = echo
    ) -> PlainTransport:
        """Make a call and return its transport."""
        transport = transport or PlainTransport()

        async def serve(call: Call) -> None:
            await call.send(await body(await call.receive(), call.context), last=True)

        with suppress(asyncio.CancelledError):
            await self.pipeline.run(ROWS[name], transport, serve)
        return transport


class PausedBody:
    """A body that waits for ``go``; ``waiting`` is set once it waits."""

    def __init__(self) -> None:
        self.waiting, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, request: bytes, context: RequestContext) -> bytes:
        self.waiting.set()
        await self.go.wait()
        return request
