"""The receiver of traces gives back what OpenTelemetry's own exporters sent."""

from __future__ import annotations

import gzip
import http.client
import json
from collections.abc import Iterator

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcExporter,
)
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter as HttpExporter,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from harness.otlp.errors import HarnessError
from harness.otlp.http import PATH
from harness.otlp.receiver import HOST, Receiver
from harness.otlp.spans import Event

JSON = {"Content-Type": "application/json"}
LINKED = SpanContext(0xA1, 0xB2, is_remote=True, trace_flags=TraceFlags(1))
# One span as OTLP's JSON has it: ids in hexadecimal digits, 64 bits in a string.
DOCUMENT = {
    "resourceSpans": [
        {
            "resource": {
                "attributes": [{"key": "service.name", "value": {"stringValue": "written"}}]
            },
            "scopeSpans": [
                {
                    "scope": {"name": "by-hand"},
                    "spans": [
                        {
                            "traceId": "0AF7651916CD43DD8448EB211C80319C",
                            "spanId": "b7ad6b7169203331",
                            "parentSpanId": "",
                            "name": "written",
                            "kind": 3,
                            "startTimeUnixNano": "1800000000000000001",
                            "endTimeUnixNano": 1800000000000000002,
                            "attributes": [
                                {"key": "n", "value": {"intValue": "7"}},
                                {"key": "raw", "value": {"bytesValue": "AAEC"}},
                                {
                                    "key": "map",
                                    "value": {
                                        "kvlistValue": {
                                            "values": [{"key": "x", "value": {"boolValue": True}}]
                                        }
                                    },
                                },
                                {"key": "nothing", "value": {}},
                            ],
                            "status": {"code": 2, "message": "broken"},
                            "ofTheFuture": 1,
                        }
                    ],
                }
            ],
        }
    ]
}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def exporter(receiver: Receiver, kind: str) -> SpanExporter:
    match kind:
        case "grpc":
            return GrpcExporter(
                endpoint=receiver.grpc_address, insecure=True, headers={"x-tenant": "acme"}
            )
        case "http":
            return HttpExporter(endpoint=receiver.http_url, headers={"X-Tenant": "acme"})
        case _:
            return HttpExporter(
                endpoint=receiver.http_url,
                headers={"X-Tenant": "acme"},
                compression=Compression.Gzip,
            )


def send_pair(exporter: SpanExporter) -> None:
    """A parent and its child, by the SDK."""
    provider = TracerProvider(resource=Resource({"service.name": "sender", "replicas": 2}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("scope-of-test")
    with (
        tracer.start_as_current_span("parent", kind=SpanKind.SERVER, links=[Link(LINKED)]) as above,
        tracer.start_as_current_span("child", attributes={"n": 3, "f": 0.5, "list": ["a", "b"]}),
    ):
        above.add_event("happened", {"why": "test"}, timestamp=12345)
        above.set_status(Status(StatusCode.ERROR, "it broke"))
    provider.shutdown()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("grpc", "application/grpc"),
        ("http", "application/x-protobuf"),
        ("gzip", "application/x-protobuf"),
    ],
)
def test_a_parent_and_its_child_arrive_from_the_sdk(
    receiver: Receiver, kind: str, content: str
) -> None:
    send_pair(exporter(receiver, kind))

    child, parent = receiver.wait_for(lambda spans: len(spans) == 2)
    assert (child.name, child.kind, child.status) == ("child", "INTERNAL", "UNSET")
    assert child.attributes == {"n": 3, "f": 0.5, "list": ["a", "b"]}
    assert (parent.name, parent.kind) == ("parent", "SERVER")
    assert (parent.status, parent.status_message) == ("ERROR", "it broke")
    assert child.trace_id == parent.trace_id
    assert len(bytes.fromhex(parent.trace_id)) == 16
    assert child.parent_id == parent.span_id
    assert parent.parent_id is None
    assert 0 < parent.start_ns <= child.start_ns <= child.end_ns <= parent.end_ns
    assert parent.events == (Event("happened", 12345, {"why": "test"}),)
    assert parent.links == ((f"{0xA1:032x}", f"{0xB2:016x}"),)
    assert parent.resource == {"service.name": "sender", "replicas": 2}
    assert parent.scope == "scope-of-test"
    assert {delivery.content_type for delivery in receiver.deliveries} == {content}
    assert {delivery.headers["x-tenant"] for delivery in receiver.deliveries} == {"acme"}
    encodings = {delivery.headers.get("content-encoding", "") for delivery in receiver.deliveries}
    assert ("gzip" in encodings) == (kind == "gzip")


def test_json_is_read_as_the_specification_has_it(receiver: Receiver) -> None:
    body = gzip.compress(json.dumps(DOCUMENT).encode())

    status, answer = post(receiver, body, JSON | {"Content-Encoding": "gzip"})

    assert (status, json.loads(answer)) == (200, {})
    (span,) = receiver.spans
    assert span.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert span.span_id == "b7ad6b7169203331"
    assert span.parent_id is None
    assert (span.start_ns, span.end_ns) == (1800000000000000001, 1800000000000000002)
    assert span.kind == "CLIENT"
    assert span.attributes == {
        "n": 7,
        "raw": b"\x00\x01\x02",
        "map": {"x": True},
        "nothing": None,
    }
    assert (span.status, span.status_message) == ("ERROR", "broken")
    assert (span.resource, span.scope) == ({"service.name": "written"}, "by-hand")


def test_what_is_no_request_is_refused(receiver: Receiver) -> None:
    for body, headers, path, status in (
        (b"{}", JSON, "/v1/metrics", 404),
        (b"{}", {"Content-Type": "text/plain"}, PATH, 415),
        (b"{}", JSON | {"Content-Encoding": "gzip"}, PATH, 400),
        (b'{"resourceSpans": 1}', JSON, PATH, 400),
        (b"\xff\xff", {"Content-Type": "application/x-protobuf"}, PATH, 400),
    ):
        assert post(receiver, body, headers, path)[0] == status, (body, headers)
    assert receiver.deliveries == ()


def test_waiting_in_vain_says_what_has_arrived(receiver: Receiver) -> None:
    send_pair(exporter(receiver, "http"))
    receiver.wait_for(lambda spans: len(spans) == 2)

    with pytest.raises(HarnessError, match=r"not among 2 spans after 0\.01 s(?s:.*) child"):
        receiver.wait_for(lambda spans: any(span.name == "other" for span in spans), 0.01)


def test_it_starts_again_where_it_was(receiver: Receiver) -> None:
    before = (receiver.grpc_address, receiver.http_url)
    receiver.stop()
    with pytest.raises(OSError, match="refused"):
        post(receiver, b"{}", JSON)

    receiver.start()

    assert (receiver.grpc_address, receiver.http_url) == before
    send_pair(exporter(receiver, "grpc"))
    assert receiver.wait_for(lambda spans: len(spans) == 2)
    receiver.clear()
    assert receiver.spans == ()


def post(
    receiver: Receiver, body: bytes, headers: dict[str, str], path: str = PATH
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(HOST, receiver.http_port, timeout=60)
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
