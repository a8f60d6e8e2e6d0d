"""A receiver of OpenTelemetry traces on loopback: OTLP over gRPC, and as JSON over HTTP."""

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
    """Collects every span that is sent to it; a context manager, to be used from any thread."""

    def __init__(self, host: str = HOST) -> None:
        """Take free ports; *host* is where it takes gRPC."""
        self._spans: list[Span] = []
        self._grpc = grpc.server(ThreadPoolExecutor(4))
        # Which has no types.
        add: Callable[..., None] = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        add(self, self._grpc)
        self.grpc_address = join(host, self._grpc.add_insecure_port(join(host, 0)))
        self._http = _HttpServer((HOST, 0), self)
        self.http_url = f"http://{HOST}:{self._http.server_address[1]}/v1/traces"

    def __enter__(self) -> Self:
        self._grpc.start()
        # Polled for the end only.
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._grpc.stop(grace=None).wait()
        self._http.shutdown()
        self._http.server_close()

    @property
    def spans(self) -> tuple[Span, ...]:
        """All spans so far, in the order of their arrival."""
        return tuple(self._spans)

    def clear(self) -> None:
        """Forget what was collected."""
        self._spans.clear()

    def Export(  # noqa: N802 - the name is the protocol's
        self, request: ExportTraceServiceRequest, _: object
    ) -> ExportTraceServiceResponse:
        """Take one request."""
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
        """Take one request."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = ExportTraceServiceRequest()
        document = json.loads(body, object_hook=_with_base64_ids)
        json_format.ParseDict(document, request, ignore_unknown_fields=True)
        self.server.receiver.Export(request, None)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is given
        """Write nothing."""


def _with_base64_ids(fields: dict[str, Any]) -> dict[str, Any]:
    """Write ids as protobuf's JSON does; that of OTLP has hexadecimal digits."""
    for name in {"traceId", "spanId", "parentSpanId"} & fields.keys():
        fields[name] = base64.b64encode(bytes.fromhex(fields[name])).decode()
    return fields
