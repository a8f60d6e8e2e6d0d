"""Confirmation that an embedding is durable: by a replica, and by the disk of its owner.

A replica alone is not enough.  A supervisor restarts the process of a master within a second, which
is sooner than a replica takes over.  The master then still owns its slots, with the data on its
disk, and its replicas copy that, even if it is empty.
"""

from __future__ import annotations

from collections.abc import Sequence

from samserve.cache.shared.base import Command, ErrorReply, Reply
from samserve.settings import SharedCacheSettings

CONFIGURATION: Command = ("CONFIG", "GET", "append*")
"""The command for servers without WAITAOF: those before Redis 7.2."""

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
_NO_PERMISSION = (
    "the shared cache does not let this server check that it is kept on a replica and on disk "
    "(+wait and +waitaof, or +config|get before Redis 7.2); see cache.shared.durability_level"
)


def confirmations(settings: SharedCacheSettings) -> tuple[Command, ...]:
    """Return the commands that follow a write on its connection and wait for its confirmation.

    They refer to the writes of that connection: without a write before, they confirm nothing.
    """
    timeout_ms = max(1, round(settings.durability_timeout_s * 1000))  # 0 would wait forever
    wait: Command = ("WAIT", 1, timeout_ms)
    if settings.durability_level == "replica":
        return (wait,)
    return (wait, ("WAITAOF", 1, 0, timeout_ms))


def confirmation_error(replies: Sequence[Reply]) -> str:
    """Return why the replies to `confirmations` confirm nothing; empty if they do."""
    confirmed, *disk = replies
    if isinstance(confirmed, ErrorReply) and confirmed.kind == "denied":
        return _NO_PERMISSION
    if not isinstance(confirmed, int) or confirmed < 1:
        return _NO_REPLICA
    if not disk or _is_on_disk(disk[0]):
        return ""
    if isinstance(disk[0], ErrorReply):
        return _NO_FILE if "appendonly" in disk[0].text else _NO_PERMISSION
    return _NOT_ON_DISK


def waitaof_unknown(replies: Sequence[Reply]) -> bool:
    """Return whether the server does not know WAITAOF; then use `configuration_error`."""
    return any(isinstance(each, ErrorReply) and "unknown command" in each.text for each in replies)


def configuration_error(configuration: Reply) -> str:
    """Return why the reply to `CONFIGURATION` shows no durability; empty if it does."""
    if not isinstance(configuration, list):
        return _NO_PERMISSION
    values = dict(zip(configuration[::2], configuration[1::2], strict=False))
    if values.get(b"appendonly") != b"yes":
        return _NO_FILE
    return "" if values.get(b"appendfsync") == b"always" else _NOT_ALWAYS


def _is_on_disk(reply: Reply) -> bool:
    return isinstance(reply, list) and len(reply) == 2 and reply[0] == 1
