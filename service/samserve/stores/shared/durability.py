"""What proves that an embedding is durable: a replica has it, and its owner has it on disk.

A replica alone does not do.  A supervisor restarts the process of a master within a second, which
is sooner than a replica takes over.  Such a master comes back as the owner with what its disk
holds, and its replicas copy that, even if it is nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from samserve.settings import CacheSettings
from samserve.stores.shared.base import Command, Refused, Reply

CONFIGURATION: Command = ("CONFIG", "GET", "append*")
"""What to ask a server that does not know WAITAOF: those before Redis 7.2."""

_NO_REPLICA = "no replica of the shared cache has confirmed the embedding"
_NO_FILE = (
    "the node of the shared cache that owns the embedding keeps no append-only file (appendonly "
    "no): it would be lost if that node were restarted"
)
_NOT_ON_DISK = "the disk of the shared cache has not confirmed the embedding in time"
_NOT_ALWAYS = (
    "the node of the shared cache that owns the embedding is older than Redis 7.2 and does not "
    "write each change to disk (appendfsync always)"
)
_CANNOT_TELL = (
    "the shared cache does not let this server check that it is kept on a replica and on disk "
    "(+wait and +waitaof, or +config|get before Redis 7.2); see cache.durable_needs"
)


def confirmations(settings: CacheSettings) -> tuple[Command, ...]:
    """Return the commands that follow a write on its connection, and end when it is confirmed.

    They count what that connection has written before: without a write of its own, they confirm
    nothing.
    """
    timeout_ms = max(1, round(settings.durable_s * 1000))  # 0 would be without end
    wait: Command = ("WAIT", 1, timeout_ms)
    if settings.durable_needs == "replica":
        return (wait,)
    return (wait, ("WAITAOF", 1, 0, timeout_ms))


def missing(replies: Sequence[Reply]) -> str:
    """Return what the replies to `confirmations` lack, in a sentence; empty if nothing."""
    confirmed, *disk = replies
    if isinstance(confirmed, Refused) and confirmed.kind == "denied":
        return _CANNOT_TELL
    if not isinstance(confirmed, int) or confirmed < 1:
        return _NO_REPLICA
    if not disk or _is_on_disk(disk[0]):
        return ""
    if isinstance(disk[0], Refused):
        return _NO_FILE if "appendonly" in disk[0].text else _CANNOT_TELL
    return _NOT_ON_DISK


def is_unknown(replies: Sequence[Reply]) -> bool:
    """Return whether WAITAOF is unknown to this server; then `missing_in` says what is lacking."""
    return any(isinstance(each, Refused) and "unknown command" in each.text for each in replies)


def missing_in(configuration: Reply) -> str:
    """Return what the reply to `CONFIGURATION` lacks, in a sentence; empty if nothing."""
    if not isinstance(configuration, list):
        return _CANNOT_TELL
    found = dict(zip(configuration[::2], configuration[1::2], strict=False))
    if found.get(b"appendonly") != b"yes":
        return _NO_FILE
    return "" if found.get(b"appendfsync") == b"always" else _NOT_ALWAYS


def _is_on_disk(reply: Reply) -> bool:
    return isinstance(reply, list) and len(reply) == 2 and reply[0] == 1
