"""OTLP over HTTP: POST /v1/traces with protobuf or JSON, compressed or not."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from harness.otlp import spans

PATH = "/v1/traces"
PROTOBUF, JSON = "application/x-protobuf", "application/json"

Take = Callable[[ExportTraceServiceRequest, str, Mapping[str, str]], None]
"""Called with a request, what it was sent as, and its headers with names in lower case."""

_READERS = {PROTOBUF: spans.from_protobuf, JSON: spans.from_json}


class HttpServer(ThreadingHTTPServer):
    """Listens at once; serves once ``serve_forever`` runs."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], take: Take) -> None:
        super().__init__(address, _Handler)
        self.take = take


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: HttpServer
    protocol_version = "HTTP/1.1"
    # A client that keeps its connection open must not keep a thread for ever.
    timeout = 60

    def do_POST(self) -> None:
        """Take one request."""
        try:
            content = self._take()
        except _Refused as refusal:
            self.close_connection = True
            self._answer(refusal.status, "text/plain", str(refusal).encode())
            return
        empty = ExportTraceServiceResponse()
        body = json_format.MessageToJson(empty).encode() if content == JSON else b""
        self._answer(HTTPStatus.OK, content, body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is given
        """Keep quiet."""

    def _take(self) -> str:
        """Hand the request on, and return its content type."""
        if self.path != PATH:
            raise _Refused(HTTPStatus.NOT_FOUND, f"traces go to {PATH}")
        content = self.headers.get_content_type()
        read = _READERS.get(content)
        if read is None:
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"{content} is neither of {_READERS}")
        try:
            request = read(self._body())
        except ValueError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, str(error)) from error
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.take(request, content, headers)
        return content

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length")
        if length is None:
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "chunked bodies are not read here")
        body = self.rfile.read(int(length))
        match self.headers.get("Content-Encoding", "identity"):
            case "identity":
                return body
            case "gzip":
                return _unzipped(body)
            case other:
                raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"{other} is not read here")

    def _answer(self, status: HTTPStatus, content: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _unzipped(body: bytes) -> bytes:
    try:
        return gzip.decompress(body)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"not gzip: {error}") from error
