"""What a call carries beside its request: names and values, credentials among them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence

from samserve.errors import MetadataTooLarge

Metadata = Sequence[tuple[str, str | bytes]]
"""Names in lower case."""

REQUEST_ID = "x-request-id"
_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
# What HTTP/2 adds for each entry (RFC 9113, 6.5.2), and gRPC counts too.
_ENTRY_BYTES = 32


def size_error(metadata: Metadata, max_bytes: int) -> MetadataTooLarge | None:
    """Build the error for metadata of more bytes: of names and values, and 32 for each entry."""
    nbytes = sum(len(name) + len(value) + _ENTRY_BYTES for name, value in metadata)
    if nbytes <= max_bytes:
        return None
    return MetadataTooLarge(
        "metadata",
        f"{nbytes} bytes of names and values, with {_ENTRY_BYTES} for each entry; "
        f"server.metadata_bytes allows {max_bytes}",
        metadata={"limit": str(max_bytes), "actual": str(nbytes)},
    )


def texts(metadata: Metadata, name: str) -> list[str]:
    """Return the values of a name; one that is no text is empty."""
    return [value if isinstance(value, str) else "" for key, value in metadata if key == name]


def request_id(metadata: Metadata) -> str:
    """Return the id that the client gave the call, or a new one if that cannot be used."""
    given = texts(metadata, REQUEST_ID)
    return next(filter(_VALID_REQUEST_ID.fullmatch, given), "") or uuid.uuid4().hex
