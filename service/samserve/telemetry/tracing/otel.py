"""Traces by the SDK of OpenTelemetry, sent as OTLP over gRPC."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from grpc import ssl_channel_credentials
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    set_span_in_context,
)
from opentelemetry.trace import Span as ApiSpan
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from samserve import __version__
from samserve.errors import Misconfigured
from samserve.settings import TraceSettings
from samserve.stages import Span
from samserve.telemetry.tracing.base import CallEnd, Metadata

_PROPAGATOR = TraceContextTextMapPropagator()
_SCOPE = InstrumentationScope("samserve", __version__)
_HEADERS = ("traceparent", "tracestate")
# At the end of the process; a receiver that is away must not hold that up.
_FLUSH_S = 2.0


class OtelTracing:
    """Samples calls and sends their spans, from a thread, in batches.

    What a receiver does not take in time is dropped: traces never hold up calls.
    """

    def __init__(self, settings: TraceSettings) -> None:
        self._provider = TracerProvider(
            resource=_resource(), sampler=_sampler(settings), shutdown_on_exit=False
        )
        self._exporter = _exporter(settings)
        self._processor = BatchSpanProcessor(self._exporter)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer(_SCOPE.name, _SCOPE.version)

    def begin(self, service: str, method: str, metadata: Metadata | None) -> OtelCall:
        """See `Tracing.begin`."""
        carrier = {
            key: value
            for key, value in metadata or ()
            if key in _HEADERS and isinstance(value, str)
        }
        span = self._tracer.start_span(
            f"{service}/{method}",
            _PROPAGATOR.extract(carrier) if carrier else None,
            SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        return OtelCall(span, self._processor, self._provider.resource)

    async def aclose(self) -> None:
        """See `Tracing.aclose`."""
        flushing = asyncio.create_task(asyncio.to_thread(self._provider.force_flush))
        await asyncio.wait([flushing], timeout=_FLUSH_S)
        # Ends an export that goes on.  The timeouts that the SDK's processor takes have no effect:
        # https://github.com/open-telemetry/opentelemetry-python/issues/4568
        await asyncio.to_thread(self._exporter.shutdown)
        await flushing
        await asyncio.to_thread(self._provider.shutdown)


class OtelCall:
    """See `CallTrace`.

    The call is a span of the SDK's.  Its stages, of which there are a dozen, are written down as
    they pass, and made into spans when all is over: to begin and end one in the SDK costs more
    than most of them take.
    """

    def __init__(self, span: ApiSpan, processor: SpanProcessor, resource: Resource) -> None:
        self._span = span
        self._processor = processor
        self._resource = resource
        self.context = span.get_span_context()
        self.recorded = span.is_recording()
        self.trace_id = f"{self.context.trace_id:032x}"
        # Triton records every trace that it gets, so it gets only those that are sampled.
        self.span: Span | None = _Part(self, "", self.context) if self.recorded else None
        self.parts: list[_Part] = []
        self.over = False

    def end(self, end: CallEnd) -> None:
        """See `CallTrace.end`."""
        self.over = True
        for part in self.parts:
            # Work that others wait for goes on, and is sent when it ends.
            if part.ended_ns:
                self.send(part)
        facts = end.facts
        self._span.set_attributes(
            {
                "rpc.grpc.status_code": end.code,
                "samserve.request_id": end.request_id,
                "samserve.tenant": end.tenant,
                "samserve.model": facts.model,
                "samserve.cache": facts.cache,
                "samserve.prompts": facts.prompts,
                "samserve.masks": facts.masks,
            }
        )
        if end.server_failed:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def send(self, part: _Part) -> None:
        """Make a span of a part that has ended."""
        span = ReadableSpan(
            part.name,
            part.context,
            part.parent,
            self._resource,
            start_time=part.began_ns,
            end_time=part.ended_ns,
            instrumentation_scope=_SCOPE,
        )
        self._processor.on_end(span)


class _Part:
    """See `samserve.stages.Span`; the one without a parent is the call itself."""

    __slots__ = ("_call", "began_ns", "context", "ended_ns", "name", "parent")

    def __init__(
        self, call: OtelCall, name: str, context: SpanContext, parent: SpanContext | None = None
    ) -> None:
        self._call = call
        self.name = name
        self.context = context
        self.parent = parent
        self.began_ns = time.time_ns()
        self.ended_ns = 0

    def child(self, name: str) -> _Part:
        call, around = self._call, self.context
        # The SDK's own ids are as random as this.
        identity = random.getrandbits(64) or 1
        context = SpanContext(
            around.trace_id, identity, False, around.trace_flags, around.trace_state
        )
        part = _Part(call, name, context, around)
        call.parts.append(part)
        return part

    def end(self) -> None:
        self.ended_ns = time.time_ns()
        if self._call.over:
            self._call.send(self)

    def headers(self) -> Mapping[str, str]:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(NonRecordingSpan(self.context)))
        return carrier


def _sampler(settings: TraceSettings) -> Sampler:
    ours = TraceIdRatioBased(settings.ratio)
    if settings.follow_clients:
        return ParentBased(ours)
    return ParentBased(ours, remote_parent_sampled=ours, remote_parent_not_sampled=ours)


def _resource() -> Resource:
    ours = Resource.create({"service.name": "samserve", "service.version": __version__})
    # What OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say, wins.
    return ours.merge(OTELResourceDetector().detect())


class _Exporter(OTLPSpanExporter):
    """Can be shut down more than once; refuses spans from then on without a line in the log."""

    _over = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; see `OTLPSpanExporter`."""
        return SpanExportResult.FAILURE if self._over else super().export(spans)

    def shutdown(self, timeout_millis: float = 0, **kwargs: Any) -> None:
        """End an export that is under way, and refuse others."""
        if not self._over:
            self._over = True
            super().shutdown(timeout_millis, **kwargs)


def _exporter(settings: TraceSettings) -> _Exporter:
    if settings.ca_file is None:
        return _Exporter(settings.endpoint)
    try:
        roots = settings.ca_file.read_bytes()
    except OSError as error:
        raise Misconfigured(f"trace.ca_file: {error.strerror}") from None
    return _Exporter(
        settings.endpoint, credentials=ssl_channel_credentials(root_certificates=roots)
    )
