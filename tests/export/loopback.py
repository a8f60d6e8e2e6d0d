"""An HTTP server on this machine with scripted answers, which remembers the requests."""

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
    """A request; its path is without the query."""

    method: str
    path: str
    headers: Message


Script = Callable[[Message], Reply]


class Loopback:
    """The scripts of each path, used up one by one but for the last, and the requests so far."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.seen: list[Seen] = []
        self.otherwise = Reply(404)
        self._scripts: dict[str, list[Script | Reply]] = defaultdict(list)

    def on(self, path: str, *scripts: Script | Reply) -> str:
        """Set the answers to a path, in turn, whatever its query; returns its URL."""
        self._scripts[path.partition("?")[0]] = list(scripts)
        return self.address + path

    def reply(self, seen: Seen) -> Reply:
        self.seen.append(seen)
        scripts = self._scripts[seen.path] or [self.otherwise]
        script = scripts.pop(0) if len(scripts) > 1 else scripts[0]
        return script if isinstance(script, Reply) else script(seen.headers)

    @property
    def ranges(self) -> list[str | None]:
        """The Range header of each request."""
        return [seen.headers["Range"] for seen in self.seen]


def whole(content: bytes, **headers: str) -> Reply:
    """A server that knows no ranges."""
    return Reply(200, content, headers)


def file(content: bytes, cut: int | None = None) -> Script:
    """A file, whole or the range that is asked for."""

    def script(headers: Message) -> Reply:
        found = re.fullmatch(r"bytes=(\d+)-", headers["Range"] or "")
        if not found:
            return Reply(200, content, cut=cut)
        start = int(found[1])
        position = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return Reply(206, content[start:], position, cut)

    return script


def redirect(location: str) -> Reply:
    return Reply(302, b"over there", {"Location": location})


@contextmanager
def loopback() -> Iterator[Loopback]:
    """Serve on a free port while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with suppress(OSError):  # the other side left
                super().handle()

        def do_GET(self) -> None:
            seen = Seen(self.command, self.path.partition("?")[0], self.headers)
            reply = state.reply(seen)
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
    """The body; chunked, it is one chunk and the last, empty one."""
    if reply.framing == "chunked":
        return b"%x\r\n%b\r\n0\r\n\r\n" % (len(reply.body), reply.body)
    return reply.body[: reply.cut]
