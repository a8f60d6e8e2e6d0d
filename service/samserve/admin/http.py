"""The admin listener: health and metrics over HTTP, for probes and Prometheus."""

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

# A loop that does not turn within this time is stuck: calls are not being answered either.
_LIVE_TIMEOUT_S = 2.0

_StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class Admin:
    """Answers /livez, /readyz and /metrics from threads, also while the event loop is busy."""

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
            place = addresses.join(host, port)
            raise Unavailable(f"cannot listen on {place}: {addresses.why(error)}") from error
        with ExitStack() as stack:
            for opened in sockets:
                stack.enter_context(self._serving(opened))
            yield int(sockets[0].getsockname()[1])

    @contextmanager
    def _serving(self, opened: socket.socket) -> Iterator[None]:
        server = _Server(opened, self._respond)
        # A shutdown is noticed at the next poll; the default of 0.5 s would delay every stop.
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
            # Who accepts OpenMetrics gets exemplars too.
            generate, content_type = _encoder(environ.get("HTTP_ACCEPT", ""))
            start("200 OK", [("Content-Type", content_type)])
            return [generate(self._registry)]
        checks: dict[str, Callable[[], bool]] = {
            "/livez": self._loop_turns,
            "/readyz": lambda: self.ready,
        }
        check = checks.get(path)
        if check is None:
            status, text = "404 Not Found", "try /livez, /readyz or /metrics"
        elif check():
            status, text = "200 OK", "ok"
        else:
            status, text = "503 Service Unavailable", "not ok"
        start(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]

    def _loop_turns(self) -> bool:
        turned = threading.Event()
        try:
            self._loop.call_soon_threadsafe(turned.set)
        except RuntimeError:
            return False
        return turned.wait(_LIVE_TIMEOUT_S)


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """Choose a format; the plain one for who asks for a version that is none."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        return choose_encoder("")


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, opened: socket.socket, app: Any) -> None:
        """Take a socket that listens already; no name is looked up for it."""
        place = opened.getsockname()
        self.address_family = opened.family
        super().__init__(place[:2], _SilentHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = opened
        self.server_name, self.server_port = place[:2]
        self.setup_environ()
        self.set_app(app)


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keep probes out of the log."""
