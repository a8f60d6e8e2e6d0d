"""Spans in one form, however they were sent."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

Attributes = dict[str, Any]

# OTLP's JSON has these in hexadecimal digits, where that of protobuf has base64.
_HEX_FIELDS = ("traceId", "spanId", "parentSpanId")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened within a span."""

    name: str
    time_ns: int
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Span:
    """A finished span.  Times are nanoseconds since 1970; ids are lower-case hexadecimal."""

    trace_id: str
    """32 digits."""
    span_id: str
    """16 digits."""
    parent_id: str | None
    """16 digits; None: the root of its trace."""
    name: str
    kind: str
    """SERVER, CLIENT, INTERNAL, PRODUCER, CONSUMER or UNSPECIFIED."""
    start_ns: int
    end_ns: int
    attributes: Attributes
    resource: Attributes
    """Attributes of what sent it, like ``service.name``."""
    status: str
    """UNSET, OK or ERROR."""
    status_message: str
    scope: str
    """The library that made it."""
    trace_state: str
    events: tuple[Event, ...]
    links: tuple[tuple[str, str], ...]
    """Trace id and span id of each."""


def from_protobuf(body: bytes) -> ExportTraceServiceRequest:
    """Read the body of a request; raise `ValueError` if it is none."""
    try:
        return ExportTraceServiceRequest.FromString(body)
    except Exception as error:  # its type depends on the implementation of protobuf
        raise ValueError(f"no ExportTraceServiceRequest: {error}") from error


def from_json(body: bytes) -> ExportTraceServiceRequest:
    """Read OTLP's JSON; raise `ValueError` if it is none."""
    document = json.loads(body, object_hook=_with_base64_ids)
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    try:
        return json_format.ParseDict(
            document, ExportTraceServiceRequest(), ignore_unknown_fields=True
        )
    except json_format.ParseError as error:
        raise ValueError(f"no ExportTraceServiceRequest: {error}") from error


def read(request: ExportTraceServiceRequest) -> Iterator[Span]:
    """Yield the spans of a request."""
    for resource_spans in request.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield _span(span, resource, scope_spans.scope.name)


def _span(span: trace_pb2.Span, resource: Attributes, scope: str) -> Span:
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() or None,
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        resource=resource,
        status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        status_message=span.status.message,
        scope=scope,
        trace_state=span.trace_state,
        events=tuple(
            Event(event.name, event.time_unix_nano, _attributes(event.attributes))
            for event in span.events
        ),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
    )


def _attributes(pairs: Iterable[KeyValue]) -> Attributes:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, kind)


def _with_base64_ids(fields: dict[str, Any]) -> dict[str, Any]:
    for name in _HEX_FIELDS:
        if name in fields:
            fields[name] = base64.b64encode(bytes.fromhex(fields[name])).decode()
    return fields
