"""The admin listener: /livez and /readyz for probes, /metrics for Prometheus."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from samserve.errors import Unavailable
from samserve.system import addresses

# An event loop that runs no callback within this time is blocked, and serves no calls either.
_LIVE_TIMEOUT_S = 2.0

_StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class Admin:
    """Serves /livez, /readyz and /metrics in threads, also while the event loop is busy."""

    def __init__(self, registry: CollectorRegistry, loop: asyncio.AbstractEventLoop) -> None:
        self._registry = registry
        self._loop = loop
        # Written on the event loop, read in threads; a bool needs no lock.
        self.ready = False

    @contextmanager
    def listening(self, host: str, port: int) -> Iterator[int]:
        """Serve on every address of *host* while the block runs; yields the port."""
        try:
            sockets = addresses.listen(host, port)
        except OSError as error:
            address = addresses.join(host, port)
            raise Unavailable(
                f"cannot listen on {address}: {addresses.error_reason(error)}"
            ) from error
        with ExitStack() as stack:
            for opened in sockets:
                stack.enter_context(self._serving(opened))
            yield int(sockets[0].getsockname()[1])

    @contextmanager
    def _serving(self, opened: socket.socket) -> Iterator[None]:
        server = _Server(opened, self._respond)
        # A shutdown is detected at the next poll; the default of 0.5 s would delay every stop.
        serve = partial(server.serve_forever, poll_interval=0.05)
        thread = threading.Thread(target=serve, name="admin", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()

    def _respond(self, environ: dict[str, Any], start: _StartResponse) -> list[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            # Clients that accept OpenMetrics get exemplars.
            generate, content_type = _encoder(environ.get("HTTP_ACCEPT", ""))
            start("200 OK", [("Content-Type", content_type)])
            return [generate(self._registry)]
        checks: dict[str, Callable[[], bool]] = {
            "/livez": self._loop_responds,
            "/readyz": lambda: self.ready,
        }
        check = checks.get(path)
        if check is None:
            status, text = "404 Not Found", "not found; use /livez, /readyz or /metrics"
        elif check():
            status, text = "200 OK", "ok"
        else:
            status, text = "503 Service Unavailable", "not ok"
        start(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]

    def _loop_responds(self) -> bool:
        called = threading.Event()
        try:
            self._loop.call_soon_threadsafe(called.set)
        except RuntimeError:
            return False
        return called.wait(_LIVE_TIMEOUT_S)


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """Choose a format; the plain text format if the requested version is invalid."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        return choose_encoder("")


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, opened: socket.socket, app: Any) -> None:
        """Use a socket that is already listening; no name is resolved for it."""
        name = opened.getsockname()
        self.address_family = opened.family
        super().__init__(name[:2], _SilentHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = opened
        self.server_name, self.server_port = name[:2]
        self.setup_environ()
        self.set_app(app)


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keep probes out of the log."""
