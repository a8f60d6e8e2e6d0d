"""The metadata of a call: names and values, credentials among them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from samserve.errors import MetadataTooLarge

Metadata = Sequence[tuple[str, str | bytes]]
"""Names in lower case."""

REQUEST_ID = "x-request-id"
_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
# The overhead of an entry in HTTP/2 (RFC 9113, 6.5.2), which gRPC counts as well.
_ENTRY_BYTES = 32


def size_error(metadata: Metadata, max_bytes: int) -> MetadataTooLarge | None:
    """Return the error for metadata over *max_bytes*; an entry counts as 32 bytes more."""
    nbytes = sum([len(name) + len(value) + _ENTRY_BYTES for name, value in metadata])
    if nbytes <= max_bytes:
        return None
    return MetadataTooLarge(
        "metadata",
        f"{nbytes} bytes of names and values, with {_ENTRY_BYTES} for each entry; "
        f"server.max_metadata_bytes allows {max_bytes}",
        metadata={"limit": str(max_bytes), "actual": str(nbytes)},
    )


def text_values(metadata: Metadata, name: str) -> list[str]:
    """Return the values of a name; a binary value is returned as an empty string."""
    return [value if isinstance(value, str) else "" for key, value in metadata if key == name]


def request_id(metadata: Metadata) -> str:
    """Return the request id that the client sent, or a new one if there is no valid one."""
    given = text_values(metadata, REQUEST_ID)
    # The bytes of an UUID, without its class, which takes longer than to draw them.
    return next(filter(_VALID_REQUEST_ID.fullmatch, given), "") or os.urandom(16).hex()
