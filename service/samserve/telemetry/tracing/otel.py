"""Traces with the OpenTelemetry SDK, exported as OTLP over gRPC."""

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
# At shutdown, which an unavailable receiver must not delay.
_FLUSH_S = 2.0


class OtelTracing:
    """Samples calls and exports their spans in batches, from a thread.

    Spans that the receiver does not accept in time are dropped: tracing never delays calls.
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
        # Ends a running export.  The timeouts of the SDK's processor have no effect:
        # https://github.com/open-telemetry/opentelemetry-python/issues/4568
        await asyncio.to_thread(self._exporter.shutdown)
        await flushing
        await asyncio.to_thread(self._provider.shutdown)


class OtelCall:
    """See `CallTrace`.

    The call is a span of the SDK.  Its dozen of stages are recorded while the call runs, and become
    spans when it ends: to begin and end a span of the SDK takes longer than most stages.
    """

    def __init__(self, span: ApiSpan, processor: SpanProcessor, resource: Resource) -> None:
        self._span = span
        self._processor = processor
        self._resource = resource
        self.context = span.get_span_context()
        self.recorded = span.is_recording()
        self.trace_id = f"{self.context.trace_id:032x}"
        # Triton records every trace context that it receives, so only sampled ones are sent.
        self.span: Span | None = _StageSpan(self, "", self.context) if self.recorded else None
        self.stages: list[_StageSpan] = []
        self.ended = False

    def end(self, end: CallEnd) -> None:
        """See `CallTrace.end`."""
        self.ended = True
        for stage in self.stages:
            # Work that other calls wait for continues; its span is exported when it ends.
            if stage.ended_ns:
                self.export(stage)
        facts = end.facts
        self._span.set_attributes(
            {
                "rpc.grpc.status_code": end.code,
                "samserve.request_id": end.request_id,
                "samserve.tenant": end.tenant,
                "samserve.model": facts.model,
                "samserve.model_version": facts.version,
                "samserve.cache": facts.cache,
                "samserve.prompts": facts.prompts,
                "samserve.masks": facts.masks,
            }
        )
        if end.server_failed:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def export(self, stage: _StageSpan) -> None:
        """Export a stage that has ended as a span."""
        span = ReadableSpan(
            stage.name,
            stage.context,
            stage.parent,
            self._resource,
            start_time=stage.began_ns,
            end_time=stage.ended_ns,
            instrumentation_scope=_SCOPE,
        )
        self._processor.on_end(span)


class _StageSpan:
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

    def child(self, name: str) -> _StageSpan:
        call, parent = self._call, self.context
        # The SDK generates its ids in the same way.
        span_id = random.getrandbits(64) or 1
        context = SpanContext(
            parent.trace_id, span_id, False, parent.trace_flags, parent.trace_state
        )
        stage = _StageSpan(call, name, context, parent)
        call.stages.append(stage)
        return stage

    def end(self) -> None:
        self.ended_ns = time.time_ns()
        if self._call.ended:
            self._call.export(self)

    def headers(self) -> Mapping[str, str]:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(NonRecordingSpan(self.context)))
        return carrier


def _sampler(settings: TraceSettings) -> Sampler:
    ratio = TraceIdRatioBased(settings.sampling_ratio)
    if settings.parent_based:
        return ParentBased(ratio)
    return ParentBased(ratio, remote_parent_sampled=ratio, remote_parent_not_sampled=ratio)


def _resource() -> Resource:
    defaults = Resource.create({"service.name": "samserve", "service.version": __version__})
    # OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME have priority.
    return defaults.merge(OTELResourceDetector().detect())


class _Exporter(OTLPSpanExporter):
    """Can be shut down more than once; then rejects spans without a log line."""

    _closed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export spans; see `OTLPSpanExporter`."""
        return SpanExportResult.FAILURE if self._closed else super().export(spans)

    def shutdown(self, timeout_millis: float = 0, **kwargs: Any) -> None:
        """End a running export, and reject others."""
        if not self._closed:
            self._closed = True
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
