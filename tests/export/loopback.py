"""An HTTP server on this machine with scripted responses, which records the requests."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass(frozen=True)
class Reply:
    """One response; after ``cut`` bytes of the body the connection is closed."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    framing: str = "length"
    """``length``, ``chunked``, or ``none``: the body ends with the connection."""


@dataclass(frozen=True)
class Request:
    """A request; its path excludes the query."""

    method: str
    path: str
    headers: Message


Script = Callable[[Message], Reply]


class Loopback:
    """The scripts of each path, each used once except the last, and the requests so far."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.requests: list[Request] = []
        self.fallback = Reply(404)
        self._scripts: dict[str, list[Script | Reply]] = defaultdict(list)

    def on(self, path: str, *scripts: Script | Reply) -> str:
        """Set the responses of a path, in order, for any query; return its URL."""
        self._scripts[path.partition("?")[0]] = list(scripts)
        return self.address + path

    def reply(self, request: Request) -> Reply:
        self.requests.append(request)
        scripts = self._scripts[request.path] or [self.fallback]
        script = scripts.pop(0) if len(scripts) > 1 else scripts[0]
        return script if isinstance(script, Reply) else script(request.headers)

    @property
    def ranges(self) -> list[str | None]:
        """The Range header of each request."""
        return [request.headers["Range"] for request in self.requests]


def full(content: bytes, **headers: str) -> Reply:
    """Return a response without support for ranges."""
    return Reply(200, content, headers)


def file(content: bytes, cut: int | None = None, **extra: str) -> Script:
    """Return a script that sends a file with *extra* headers, or the requested range of it."""

    def script(headers: Message) -> Reply:
        requested = re.fullmatch(r"bytes=(\d+)-", headers["Range"] or "")
        if not requested:
            return Reply(200, content, extra, cut)
        start = int(requested[1])
        position = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return Reply(206, content[start:], {**extra, **position}, cut)

    return script


def redirect(location: str) -> Reply:
    return Reply(302, b"redirected", {"Location": location})


@contextmanager
def loopback() -> Iterator[Loopback]:
    """Run the server on a free port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with suppress(OSError):  # the client closed the connection
                super().handle()

        def do_GET(self) -> None:
            request = Request(self.command, self.path.partition("?")[0], self.headers)
            reply = state.reply(request)
            self.close_connection = reply.cut is not None or reply.framing == "none"
            self.send_response(reply.status)
            for name, value in {**framing(reply), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(framed(reply))

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state = Loopback(f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


def framing(reply: Reply) -> dict[str, str]:
    return {
        "length": {"Content-Length": str(len(reply.body))},
        "chunked": {"Transfer-Encoding": "chunked"},
        "none": {},
    }[reply.framing]


def framed(reply: Reply) -> bytes:
    """Return the body; if chunked, as one chunk and the final, empty one."""
    if reply.framing == "chunked":
        return b"%x\r\n%b\r\n0\r\n\r\n" % (len(reply.body), reply.body)
    return reply.body[: reply.cut]
