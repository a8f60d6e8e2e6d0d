"""An OpenTelemetry trace receiver on loopback: OTLP over gRPC, and as JSON over HTTP."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import grpc
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from samserve.system.addresses import join

from harness.program import HOST


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Collects all received spans; a context manager, usable from any thread."""

    def __init__(self, host: str = HOST) -> None:
        """Bind free ports; *host* is the address of the gRPC listener."""
        self._spans: list[Span] = []
        self._grpc = grpc.server(ThreadPoolExecutor(4))
        # The generated function has no types.
        add: Callable[..., None] = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        add(self, self._grpc)
        self.grpc_address = join(host, self._grpc.add_insecure_port(join(host, 0)))
        self._http = _HttpServer((HOST, 0), self)
        self.http_url = f"http://{HOST}:{self._http.server_address[1]}/v1/traces"

    def __enter__(self) -> Self:
        self._grpc.start()
        # The poll interval only delays shutdown.
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._grpc.stop(grace=None).wait()
        self._http.shutdown()
        self._http.server_close()

    @property
    def spans(self) -> tuple[Span, ...]:
        """All received spans, in the order of arrival."""
        return tuple(self._spans)

    def clear(self) -> None:
        """Remove the collected spans."""
        self._spans.clear()

    def Export(  # noqa: N802 - the name is the protocol's
        self, request: ExportTraceServiceRequest, _: object
    ) -> ExportTraceServiceResponse:
        """Handle a gRPC request."""
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self._spans.extend(scope.spans)
        return ExportTraceServiceResponse()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], receiver: Receiver) -> None:
        super().__init__(address, _Handler)
        self.receiver = receiver


class _Handler(BaseHTTPRequestHandler):
    server: _HttpServer

    def do_POST(self) -> None:
        """Handle an HTTP request."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = ExportTraceServiceRequest()
        document = json.loads(body, object_hook=_with_base64_ids)
        json_format.ParseDict(document, request, ignore_unknown_fields=True)
        self.server.receiver.Export(request, None)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Log nothing."""


def _with_base64_ids(fields: dict[str, Any]) -> dict[str, Any]:
    """Encode ids as base64, as protobuf's JSON does; OTLP's JSON has hexadecimal ids."""
    for name in {"traceId", "spanId", "parentSpanId"} & fields.keys():
        fields[name] = base64.b64encode(bytes.fromhex(fields[name])).decode()
    return fields
