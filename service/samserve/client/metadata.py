"""The metadata of every call; validated here, because invalid metadata crashes gRPC's core."""

from __future__ import annotations

import re
from collections.abc import Callable

from samserve.client.tracing import Headers, trace_headers

Token = str | Callable[[], str]
"""An API key or bearer token, or a callable that returns one; an empty one is not sent."""

REQUEST_ID = "x-request-id"

# The ids that the server accepts; it replaces others by new ones.
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


def call_metadata(request_id: str, token: Token) -> Headers:
    """Return the metadata of a call, including the trace headers and a non-empty *token*.

    Raises ``ValueError`` and ``TypeError``, whose texts never contain the token.
    """
    if not isinstance(request_id, str):
        raise TypeError(f"request_id must be a str; got {type(request_id).__name__}")
    if not _REQUEST_ID.fullmatch(request_id):
        raise ValueError(
            f"request_id must be 1 to 128 ASCII letters, digits and _.:/-; got {request_id[:128]!r}"
        )
    token = token() if callable(token) else token
    if not isinstance(token, str):
        raise TypeError(f"token must return a str; got {type(token).__name__}")
    token = token.strip()
    if not _can_be_sent(token):
        raise ValueError("the token has invalid characters: pass the token alone, on one line")
    # Propagators are configured by the application, and may write anything.
    traces = tuple(pair for pair in trace_headers() if all(map(_can_be_sent, pair)))
    named = ((REQUEST_ID, request_id), *traces)
    return (*named, ("authorization", f"Bearer {token}")) if token else named


def _can_be_sent(text: str) -> bool:
    return text.isascii() and text.isprintable()
