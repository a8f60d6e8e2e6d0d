"""What a call carries besides its request: names and values, credentials among them."""

from __future__ import annotations

from collections.abc import Sequence

from samserve.errors import MetadataTooLarge

Metadata = Sequence[tuple[str, str | bytes]]

# What HTTP/2 adds for each entry (RFC 9113, 6.5.2), and gRPC counts too.
_ENTRY_BYTES = 32
HEADROOM = 2
"""Times our limit that gRPC lets in, so that what is over ours gets an answer with a reason."""


def size_of(metadata: Metadata) -> int:
    """Count the bytes of names and values, and 32 for each entry."""
    return sum(len(name) + len(value) + _ENTRY_BYTES for name, value in metadata)


def too_large(nbytes: int, most: int) -> MetadataTooLarge:
    """Build the error for so many bytes."""
    return MetadataTooLarge(
        "metadata",
        f"{nbytes} bytes of names and values, with {_ENTRY_BYTES} for each entry; "
        f"server.metadata_bytes allows {most}",
        metadata={"limit": str(most), "actual": str(nbytes)},
    )
