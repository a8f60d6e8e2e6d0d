"""The port of the annotation tools: what a module of `samserve.bridge.tools` implements.

A tool is a class with a name, its routes, and the form of its errors.  It gets the `Segmenter`, and
other parts that it needs, when `samserve.bridge.app` makes it, and adds nothing else to the bridge:
credentials, limits, deadlines, logs and metrics are those of the pipeline, for every route.  A
handler runs on the event loop; it raises errors of `samserve.errors` or `samserve.client`, which
the pipeline passes to `Tool.failure`, and never answers them itself.  To parse a body or to convert
pixels it uses ``await asyncio.to_thread(...)``, except for what takes less than a millisecond.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl

from samserve.bridge.caller import Caller
from samserve.calls.status import Failure
from samserve.errors import InvalidRequest
from samserve.http.response import Header

JSON = b"application/json"
REST = "*"
"""The end of the path of a route that serves a whole folder."""

# JSON of this size takes about a millisecond to parse.
_SMALL_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Reply:
    """A response: its status, body and headers.

    ``reason`` replaces the usual text of the status line, for clients that show nothing else.
    """

    body: bytes = b""
    status: int = 200
    content_type: bytes = JSON
    headers: tuple[Header, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class BridgeRequest:
    """A request of a tool, whose body has been received.

    ``path`` is without the query, ``rest`` the part of it that `REST` stands for.  ``query`` has
    the last value of each name.  ``caller`` is passed to the `Segmenter`.
    """

    method: str
    path: str
    rest: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    caller: Caller

    async def json(self) -> dict[str, Any]:
        """Return the body, a JSON object.  Raises `InvalidRequest`."""
        if len(self.body) <= _SMALL_BYTES:
            return parse_object(self.body)
        return await asyncio.to_thread(parse_object, self.body)


def parse_object(body: bytes) -> dict[str, Any]:
    """Return a JSON object.  Raises `InvalidRequest`, whose text does not repeat the content."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequest("request", "is not valid JSON") from None
    if not isinstance(found, dict):
        raise InvalidRequest("request", "is not a JSON object")
    return found


def query_of(raw: bytes) -> dict[str, str]:
    """Return the names and values of a query; values that are not UTF-8 are replaced."""
    return dict(parse_qsl(raw.decode("latin-1"), keep_blank_values=True, errors="replace"))


def json_reply(value: object, status: int = 200) -> Reply:
    """Return a response with a value as JSON; large ones are written with `asyncio.to_thread`."""
    return Reply(json.dumps(value, separators=(",", ":")).encode(), status)


Handler = Callable[[BridgeRequest], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path, and what serves them.

    ``name`` identifies it in metrics and logs.  The path is exact, or ends in ``/*`` (`REST`).  A
    *public* route needs no credentials and gets none.  ``deadline_s`` replaces
    `limits.deadline_s`, for tools that wait for a longer or a shorter time.
    """

    name: str
    method: str
    path: str
    handler: Handler
    public: bool = False
    deadline_s: float | None = None


class Tool(Protocol):
    """An annotation tool."""

    @property
    def name(self) -> str:
        """The name in metrics and logs, such as ``label_studio``."""

    def routes(self) -> Iterable[Route]:
        """Return the routes; no two tools have the same."""

    def failure(self, failure: Failure) -> Reply:
        """Return the response to a failed request, in the form that the tool's client shows.

        ``failure.message`` is for people; of internal errors it has nothing but the request id.
        """
