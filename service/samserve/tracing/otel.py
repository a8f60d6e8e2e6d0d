"""Traces by the SDK of OpenTelemetry, sent as OTLP over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from grpc import ssl_channel_credentials
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Span as ApiSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from samserve import __version__
from samserve.context import Span
from samserve.errors import Misconfigured
from samserve.settings import TraceSettings
from samserve.tracing import CallEnd, Metadata

_PROPAGATOR = TraceContextTextMapPropagator()
_HEADERS = ("traceparent", "tracestate")
# At the end of the process; a receiver that is away must not hold that up.
_FLUSH_MS = 2000


class OtelTracing:
    """Samples calls and sends their spans, from a thread, in batches.

    What a receiver does not take in time is dropped: traces never hold up calls.
    """

    def __init__(self, settings: TraceSettings) -> None:
        self._provider = TracerProvider(
            resource=_resource(), sampler=_sampler(settings), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(_exporter(settings)))
        self._tracer = self._provider.get_tracer("samserve", __version__)

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
        return OtelCall(self._tracer, span)

    async def aclose(self) -> None:
        """See `Tracing.aclose`."""
        await asyncio.to_thread(self._provider.force_flush, _FLUSH_MS)
        await asyncio.to_thread(self._provider.shutdown)


class OtelCall:
    """See `CallTrace`."""

    def __init__(self, tracer: Tracer, span: ApiSpan) -> None:
        self._span = span
        self.recorded = span.is_recording()
        self.trace_id = f"{span.get_span_context().trace_id:032x}"
        self.span: Span = _Recorded(tracer, span) if self.recorded else _UNRECORDED

    def end(self, end: CallEnd) -> None:
        """See `CallTrace.end`."""
        if not self.recorded:
            return
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


class _Recorded:
    """See `samserve.context.Span`."""

    __slots__ = ("_span", "_tracer")

    def __init__(self, tracer: Tracer, span: ApiSpan) -> None:
        self._tracer = tracer
        self._span = span

    def child(self, name: str) -> _Recorded:
        parent = set_span_in_context(self._span)
        return _Recorded(self._tracer, self._tracer.start_span(name, parent))

    def end(self) -> None:
        self._span.end()

    def headers(self) -> Mapping[str, str]:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(self._span))
        return carrier


class _Unrecorded:
    """A trace that is not sampled; Triton is not told of it: it records what it is told of."""

    def child(self, name: str) -> _Unrecorded:
        return self

    def end(self) -> None:
        pass

    def headers(self) -> Mapping[str, str]:
        return {}


_UNRECORDED = _Unrecorded()


def _sampler(settings: TraceSettings) -> Sampler:
    ours = TraceIdRatioBased(settings.ratio)
    if settings.follow_clients:
        return ParentBased(ours)
    return ParentBased(ours, remote_parent_sampled=ours, remote_parent_not_sampled=ours)


def _resource() -> Resource:
    ours = Resource.create({"service.name": "samserve", "service.version": __version__})
    # What OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say, wins.
    return ours.merge(OTELResourceDetector().detect())


def _exporter(settings: TraceSettings) -> OTLPSpanExporter:
    if settings.ca_file is None:
        return OTLPSpanExporter(settings.endpoint)
    try:
        roots = settings.ca_file.read_bytes()
    except OSError as error:
        raise Misconfigured(f"trace.ca_file: {error.strerror}") from None
    return OTLPSpanExporter(
        settings.endpoint, credentials=ssl_channel_credentials(root_certificates=roots)
    )
