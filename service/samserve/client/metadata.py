"""What goes with every call beside its request: checked here, since gRPC's core only crashes."""

from __future__ import annotations

import re
from collections.abc import Callable

from samserve.client.tracing import Headers, trace_headers

Token = str | Callable[[], str]
"""An API key or bearer token, or what returns one; empty sends none."""

REQUEST_ID = "x-request-id"

# What the server takes; any other it would replace by one of its own.
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


def call_metadata(request_id: str, token: Token) -> Headers:
    """Write the metadata of a call, the caller's trace among it; an empty *token* is left out.

    Raises ``ValueError`` and ``TypeError``, which never quote the token.
    """
    if not isinstance(request_id, str):
        raise TypeError(f"request_id must be a str; got {type(request_id).__name__}")
    if not _REQUEST_ID.fullmatch(request_id):
        raise ValueError(
            "request_id must be from 1 to 128 letters, digits and _.:/- of ASCII; "
            f"got {request_id[:128]!r}"
        )
    token = token() if callable(token) else token
    if not isinstance(token, str):
        raise TypeError(f"token must give a str; got {type(token).__name__}")
    token = token.strip()
    if not _can_be_sent(token):
        raise ValueError("the token has characters that no token has: give it alone, on one line")
    # Propagators that others have chosen may write anything.
    traces = tuple(pair for pair in trace_headers() if all(map(_can_be_sent, pair)))
    named = ((REQUEST_ID, request_id), *traces)
    return (*named, ("authorization", f"Bearer {token}")) if token else named


def _can_be_sent(text: str) -> bool:
    return text.isascii() and text.isprintable()
