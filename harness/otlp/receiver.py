"""What collects spans: over gRPC and over HTTP, on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from samserve.system.addresses import join

from harness.otlp import spans
from harness.otlp.errors import HarnessError
from harness.otlp.http import PATH, HttpServer
from harness.otlp.spans import Span

HOST = "127.0.0.1"
GRPC = "application/grpc"

_THREADS = 4
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Delivery:
    """One request of an exporter."""

    content_type: str
    """`GRPC`, or what HTTP says: ``application/x-protobuf`` or ``application/json``."""
    headers: Mapping[str, str]
    """HTTP's headers or gRPC's metadata, names in lower case."""
    spans: tuple[Span, ...]


class Receiver:
    """Collects every span that is sent to it; a context manager, to be used from any thread."""

    def __init__(self, *, host: str = HOST, grpc_port: int = 0, http_port: int = 0) -> None:
        """Describe it; *host* is where it takes gRPC, a port of 0 chooses a free one."""
        self._host = host
        self.grpc_port = grpc_port
        self.http_port = http_port
        self._deliveries: list[Delivery] = []
        self._arrived = threading.Condition()
        self._grpc: grpc.Server | None = None
        self._http: HttpServer | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def grpc_address(self) -> str:
        """``host:port`` for exporters over gRPC, without TLS; kept when it is started again."""
        return join(self._host, self.grpc_port)

    @property
    def http_url(self) -> str:
        """Where exporters over HTTP post to."""
        return f"http://{HOST}:{self.http_port}{PATH}"

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """All requests so far, in the order of their arrival."""
        with self._arrived:
            return tuple(self._deliveries)

    @property
    def spans(self) -> tuple[Span, ...]:
        """All spans so far, in the order of their arrival."""
        return tuple(span for delivery in self.deliveries for span in delivery.spans)

    def start(self) -> None:
        """Listen; raise `HarnessError` if a port is taken."""
        if self._grpc is not None:
            raise HarnessError("the receiver is started already")
        try:
            self._http = HttpServer((HOST, self.http_port), self._take)
            self.http_port = self._http.server_address[1]
            self._start_grpc()
        except (OSError, RuntimeError) as error:
            self.stop()
            raise HarnessError(f"the receiver did not start: {error}") from error
        # Polled for the end only.
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.05,), name="otlp-http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and cut connections; what was collected stays."""
        if self._grpc is not None:
            self._grpc.stop(grace=None).wait()
            self._grpc = None
        if self._thread is not None and self._http is not None:
            self._http.shutdown()
            self._thread.join()
            self._thread = None
        if self._http is not None:
            self._http.server_close()
            self._http = None

    def clear(self) -> None:
        """Forget what was collected."""
        with self._arrived:
            self._deliveries.clear()

    def wait_for(
        self, predicate: Callable[[Sequence[Span]], bool], timeout_s: float = 60.0
    ) -> tuple[Span, ...]:
        """Return all spans once the predicate is true of them.

        Raises `HarnessError`, which says what has arrived, after ``timeout_s`` seconds.
        """
        deadline = time.monotonic() + timeout_s
        with self._arrived:
            while not predicate(found := self.spans):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise HarnessError(_missing(found, timeout_s))
                self._arrived.wait(left)
        return found

    def _start_grpc(self) -> None:
        # One that is stopped must not share its port with the next.
        server = grpc.server(ThreadPoolExecutor(_THREADS), options=[("grpc.so_reuseport", 0)])
        # Which has no types.
        add: Callable[..., None] = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        add(_Servicer(self._take), server)
        self.grpc_port = server.add_insecure_port(self.grpc_address)
        server.start()
        self._grpc = server

    def _take(
        self, request: ExportTraceServiceRequest, content: str, headers: Mapping[str, str]
    ) -> None:
        delivery = Delivery(content, headers, tuple(spans.read(request)))
        with self._arrived:
            self._deliveries.append(delivery)
            self._arrived.notify_all()


class _Servicer(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(
        self, take: Callable[[ExportTraceServiceRequest, str, Mapping[str, str]], None]
    ) -> None:
        self._take = take

    def Export(  # noqa: N802 - the name is the protocol's
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        """Take one request."""
        metadata = {key: _text(value) for key, value in context.invocation_metadata()}
        self._take(request, GRPC, metadata)
        return ExportTraceServiceResponse()


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.hex()


def _missing(found: Sequence[Span], timeout_s: float) -> str:
    lines = [f"  {span.trace_id} {span.name}" for span in found[-_SHOWN:]]
    head = f"what was waited for is not among {len(found)} spans after {timeout_s:g} s"
    return "\n".join([head, *lines])
