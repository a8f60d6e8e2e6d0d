"""An HTTP server on this machine that answers as it is told, and remembers what it was asked."""

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
    """One answer; after ``cut`` bytes of the body the connection is dropped."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    framing: str = "length"
    """``length``, ``chunked``, or ``none``: the body ends with the connection."""


@dataclass(frozen=True)
class Seen:
    """A request, and how many bytes of a body it was answered with."""

    path: str
    headers: Message
    sent: int

    @property
    def range(self) -> str | None:
        return self.headers["Range"]


NOW = "Wed, 05 Apr 2023 10:00:01 GMT"
"""The Date of every answer."""

Script = Callable[[Message], Reply]


class Loopback:
    """The scripts of each path, used up one by one but for the last, and the requests so far."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.seen: list[Seen] = []
        self._scripts: dict[str, list[Script]] = defaultdict(list)

    def on(self, path: str, *scripts: Script | Reply) -> str:
        """Set what a path answers, in turn; gives its URL."""
        self._scripts[path] = [
            script if callable(script) else (lambda _, reply=script: reply) for script in scripts
        ]
        return self.address + path

    def reply(self, path: str, headers: Message) -> Reply:
        scripts = self._scripts[path] or [lambda _: Reply(404)]
        return (scripts.pop(0) if len(scripts) > 1 else scripts[0])(headers)

    @property
    def ranges(self) -> list[str | None]:
        """The Range header of each request."""
        return [seen.range for seen in self.seen]

    @property
    def sent(self) -> list[int]:
        """The bytes of each answer's body."""
        return [seen.sent for seen in self.seen]


def whole(content: bytes, cut: int | None = None, **headers: str) -> Reply:
    """A server that knows no ranges."""
    return Reply(200, content, headers, cut)


def file(content: bytes, etag: str | None = '"v1"', cut: int | None = None) -> Script:
    """A file as a good server gives it: whole or, if nothing speaks against that, a range of it."""
    tags = {"ETag": etag} if etag else {}

    def script(headers: Message) -> Reply:
        found = re.fullmatch(r"bytes=(\d+)-", headers["Range"] or "")
        if not found or headers["If-Range"] not in (None, etag):
            return whole(content, cut, **tags)
        start = int(found[1])
        if start >= len(content):
            return Reply(416, b"no", {"Content-Range": f"bytes */{len(content)}"})
        return ranged(content, start, cut, **tags)

    return script


def ranged(content: bytes, start: int, cut: int | None = None, **headers: str) -> Reply:
    """The rest of a content from a position."""
    position = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return Reply(206, content[start:], {"Content-Range": position, **headers}, cut)


def redirect(location: str, status: int = 302) -> Reply:
    return Reply(status, b"over there", {"Location": location})


@contextmanager
def loopback() -> Iterator[Loopback]:
    """Serve on a free port while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with suppress(OSError):  # the other side left
                super().handle()

        def do_GET(self) -> None:
            reply = state.reply(self.path, self.headers)
            body = reply.body if reply.cut is None else reply.body[: reply.cut]
            # Before the first byte: whoever has the last one may look already.
            state.seen.append(Seen(self.path, self.headers, len(body)))
            self.close_connection = reply.cut is not None or reply.framing == "none"
            self.send_response(reply.status)
            for name, value in {**framing(reply), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(chunks(body, reply.cut) if reply.framing == "chunked" else body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return NOW

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


def chunks(body: bytes, cut: int | None) -> bytes:
    """Write a body in one chunk; one that is cut lacks the last, empty one."""
    return b"%x\r\n%b\r\n" % (len(body), body) + (b"0\r\n\r\n" if cut is None else b"")
