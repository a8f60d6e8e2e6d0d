"""The shared tier: reads, writes and deletes embeddings; deletions reach all other gateways."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

import structlog

from samserve.cache.base import not_found
from samserve.cache.shared import durability, value_format
from samserve.cache.shared.base import Batch, CacheServers, Command, ErrorReply, Reply
from samserve.cache.shared.pieces import (
    PIECE_BYTES,
    Stored,
    following,
    found_fields,
    put_commands,
)
from samserve.cache.shared.scripts import (
    CHECKSUM,
    DELETE,
    OPTIONAL,
    REMOVE,
    RENEW,
    VALUE,
    majority_check,
    unpack_reply,
)
from samserve.cache.shared.value_format import UnusableValue, Value
from samserve.errors import CacheUnavailable, EmbeddingNotFound
from samserve.scheduling.offload import copying
from samserve.settings import SharedCacheSettings
from samserve.system.background import supervised
from samserve.telemetry.metrics.cache import CacheMetrics
from samserve.types import EmbeddingKey

_MARKER_BYTES = 16
# Time for a replica to confirm a deletion; the deletion succeeds in any case.
_CONFIRM_S = 0.1
_LOG_INTERVAL_S = 10.0
# Until the subscription to deletions restarts after an unexpected exception.
_RESTART_S = 10.0
_EVENTS = {
    "full": "shared cache full",
    "command_error": "shared cache command failed",
    "corrupt": "corrupt value read again",
    "not durable": "write not durable",
}


class Presence(Enum):
    """The state of a key in the shared tier."""

    ABSENT = "absent"
    STORED = "stored"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class CachedValue:
    """A verified value, and its remaining seconds to live, None without expiry."""

    value: Value
    ttl_s: float | None


@dataclass(frozen=True, slots=True)
class PutResult:
    """The state of a key after a write; ``own_value`` is whether it holds the caller's value."""

    presence: Presence
    own_value: bool = False


class SharedCache:
    """Reads and writes embeddings; every method raises `CacheUnavailable` during an outage."""

    def __init__(
        self, servers: CacheServers, settings: SharedCacheSettings, metrics: CacheMetrics
    ) -> None:
        self._servers = servers
        self._settings = settings
        self._metrics = metrics
        self._log = structlog.get_logger("samserve.cache")
        self._channel = f"{settings.key_prefix}:deleted".encode()
        # When each kind of failure was logged last.
        self._logged_at: dict[str, float] = {}

    def subscribed(
        self, on_deleted: Callable[[EmbeddingKey], None], on_gap: Callable[[], None]
    ) -> AbstractAsyncContextManager[None]:
        """Call *on_deleted* for deletions by any gateway while the block runs.

        *on_gap* is called when deletions may have been missed.  Correctness does not depend on
        these messages: the next `check` of a key finds its deletion.  They free the memory of
        gateways that do not use the embedding.
        """

        def on_message(name: bytes) -> None:
            # Neither prefix nor tenant contains a colon.
            parts = name.decode(errors="replace").split(":", 2)
            if len(parts) == 3:
                on_deleted(EmbeddingKey(unquote(parts[1]), parts[2]))

        subscribe = partial(self._servers.subscribe, self._channel, on_gap, on_message)
        return supervised(
            subscribe, "subscription to deletions failed", _RESTART_S, "samserve.cache"
        )

    def name(self, key: EmbeddingKey) -> bytes:
        """Return the name in the cluster: ``prefix:tenant:id``, the tenant percent-encoded."""
        tenant = quote(key.tenant, safe="")
        return f"{self._settings.key_prefix}:{tenant}:{key.embedding_id}".encode()

    async def deletion_marker(self, key: EmbeddingKey) -> bytes:
        """Return the marker of the deletion that is in force, empty if there is none.

        Read before an encode begins: a later deletion has another marker, see `put`.
        """
        (marker,) = unpack_reply(
            await self._run(key, ("HGET", self.name(key), "deleted")), OPTIONAL
        )
        return marker or b""

    async def get(self, key: EmbeddingKey, usable: Callable[[Value], bool]) -> CachedValue:
        """Read an embedding that *usable* accepts.  Raises `EmbeddingNotFound`.

        A corrupt value is read again over a new connection, and removed if it is corrupt in the
        cluster.  A value of another format or model is neither used nor removed.
        """
        stored = await self._fetch(key)
        try:
            value = await self._parse(key, stored)
        except UnusableValue as error:
            # Other formats have fields of their own, so one in this field is corruption as well.
            stored = await self._fetch(key, fresh=True)
            value = await self._parse_again(key, stored, str(error))
        if not usable(value):
            raise self._miss(key, "model_mismatch")
        self._metrics.read("hit")
        return CachedValue(value, stored.ttl_s)

    async def check(self, key: EmbeddingKey) -> Presence:
        """Return the state of a key, without reading the value."""
        name = self.name(key)
        command = ("HMGET", name, "deleted", CHECKSUM)
        fields, _ = await self._run(key, command, majority_check(name), required=1)
        return _presence(*unpack_reply(fields, OPTIONAL, OPTIONAL))

    async def renew(self, key: EmbeddingKey, ttl_s: float, *, durable: bool = False) -> Presence:
        """Restart the time to live of a value; with *durable*, confirmed by replica and disk.

        Raises `CacheUnavailable` if an existing value is not confirmed, see `durability`.
        """
        command = ("EVAL", RENEW, 1, self.name(key), round(ttl_s * 1000))
        fields, problem = await self._write(key, command, durable=durable)
        return self._require_durable(_presence(*unpack_reply(fields, OPTIONAL, OPTIONAL)), problem)

    async def put(
        self,
        key: EmbeddingKey,
        data: bytes | bytearray,
        ttl_s: float,
        *,
        marker: bytes = b"",
        durable: bool = False,
    ) -> PutResult:
        """Write the value unless the key holds a value, or a deletion with another *marker*.

        For *durable*, see `renew`.
        """
        commands = put_commands(self.name(key), marker, data, round(ttl_s * 1000))
        self._metrics.bytes.labels("out").inc(len(data))
        reply, problem = await self._write(key, *commands, nbytes=len(data), durable=durable)
        result, stored_checksum = unpack_reply(reply, bytes, bytes)
        checksum = value_format.checksum(data)
        self._metrics.writes.labels(result.decode()).inc()
        presence = Presence.DELETED if result == b"deleted" else Presence.STORED
        return PutResult(self._require_durable(presence, problem), stored_checksum == checksum)

    async def delete(self, key: EmbeddingKey, ttl_s: float) -> bool:
        """Delete for all gateways, and for pending writes; return whether there was a value."""
        marker = secrets.token_bytes(_MARKER_BYTES)
        command = ("EVAL", DELETE, 1, self.name(key), marker, round(ttl_s * 1000))
        # All nodes forward it to their subscribers.
        notice = ("PUBLISH", self._channel, self.name(key))
        # The deletion must survive the loss of the master.
        wait_s = _CONFIRM_S if self._servers.health().has_replicas else 0.0
        wait = [("WAIT", 1, round(wait_s * 1000))] if wait_s else []
        replies = await self._run(key, command, notice, *wait, extra_s=wait_s, required=1)
        return bool(replies[0] == 1)

    async def _fetch(self, key: EmbeddingKey, *, fresh: bool = False) -> Stored:
        """Read the fields of the value and its remaining time to live."""
        name = self.name(key)
        *replies, _ = await self._read(
            key,
            ("HMGET", name, "deleted", VALUE),
            ("PTTL", name),
            ("HLEN", name),
            majority_check(name),
            nbytes=PIECE_BYTES,
            required=3,
            fresh=fresh,
        )
        found, ttl_ms, field_count = unpack_reply(replies, list, int, int)
        deleted, first = unpack_reply(found, OPTIONAL, OPTIONAL)
        if deleted or first is None:
            other_format = not deleted and field_count > 0
            raise self._miss(
                key, "deleted" if deleted else "format_mismatch" if other_format else "miss"
            )
        names, rest = following(first), []
        if names:
            # Pieces that a deletion removes meanwhile are missing: the value is then corrupt, is
            # read again, and is a miss.
            nbytes = len(names) * PIECE_BYTES
            command: Command = ("HMGET", name, *names)
            (rest,) = await self._read(key, command, nbytes=nbytes, fresh=fresh)
        # -1 is a key that does not expire, -2 one that has expired meanwhile.
        ttl_s = None if ttl_ms == -1 else max(0, ttl_ms) / 1000
        stored = Stored(found_fields(first, names, rest), ttl_s)
        self._metrics.bytes.labels("in").inc(stored.nbytes)
        return stored

    async def _read(self, key: EmbeddingKey, *commands: Command, **options: Any) -> list[Reply]:
        """Do as `_run` does, and count an outage as a result of the read."""
        try:
            return await self._run(key, *commands, **options)
        except CacheUnavailable:
            self._metrics.read("unavailable")
            raise

    async def _parse(self, key: EmbeddingKey, stored: Stored) -> Value:
        return await copying(
            stored.nbytes, lambda: value_format.parse(self.name(key), stored.joined())
        )

    async def _parse_again(self, key: EmbeddingKey, stored: Stored, reason: str) -> Value:
        """Parse a value that was read again because of *reason*; remove it if it is corrupt.

        Raises `EmbeddingNotFound`.
        """
        name = self.name(key)
        try:
            value = await self._parse(key, stored)
        except UnusableValue as error:
            digests = await copying(stored.nbytes, stored.digests)
            (removed,) = await self._run(key, ("EVAL", REMOVE, 1, name, *digests))
            event = "corrupt value removed" if removed else "corrupt value received"
            self._log.warning(event, key=name.decode(), reason=str(error))
            raise self._miss(key, "corrupt") from None
        self._metrics.errors.labels("corrupt").inc()
        self._log_rate_limited("corrupt", reason)
        return value

    async def _write(
        self, key: EmbeddingKey, *commands: Command, nbytes: int = 0, durable: bool = False
    ) -> tuple[Reply, str]:
        """Return the last reply, and why it is not durable; empty if it is, or not requested."""
        count = len(commands)
        if not durable:
            return (await self._run(key, *commands, nbytes=nbytes))[-1], ""
        waits = durability.confirmations(self._settings)
        extra_s = len(waits) * self._settings.durability_timeout_s
        replies = await self._run(
            key, *commands, *waits, nbytes=nbytes, extra_s=extra_s, required=count
        )
        reply, confirmed = replies[count - 1], replies[count:]
        if not durability.waitaof_unknown(confirmed):
            return reply, durability.confirmation_error(confirmed)
        (configuration,) = await self._run(key, durability.CONFIGURATION, required=0)
        problem = durability.confirmation_error(confirmed[:1])
        return reply, problem or durability.configuration_error(configuration)

    def _require_durable(self, presence: Presence, problem: str) -> Presence:
        """Return *presence*.  Raises `CacheUnavailable` for a value that is not durable."""
        if problem and presence is Presence.STORED:
            self._log_rate_limited("not durable", problem)
            raise CacheUnavailable(problem)
        return presence

    async def _run(
        self, key: EmbeddingKey, *commands: Command, required: int | None = None, **options: Any
    ) -> list[Reply]:
        """Run *commands*, the first *required* of which must succeed; *options* of `Batch`."""
        try:
            batch = Batch(commands, key.tenant, **options)
            replies = await self._servers.run(self.name(key), batch)
        except CacheUnavailable:
            self._metrics.errors.labels("unavailable").inc()
            raise
        error = next((each for each in replies[:required] if isinstance(each, ErrorReply)), None)
        if error is None:
            return replies
        full = error.kind == "full"
        kind = "full" if full else "command_error"
        self._metrics.errors.labels(kind).inc()
        self._log_rate_limited(kind, error.text[:200])
        raise CacheUnavailable(
            "the shared cache is full" if full else "a command to the shared cache failed"
        )

    def _log_rate_limited(self, kind: str, reason: str) -> None:
        """Log a failure, each kind at most once every few seconds."""
        now = time.monotonic()
        if now - self._logged_at.get(kind, -_LOG_INTERVAL_S) >= _LOG_INTERVAL_S:
            self._logged_at[kind] = now
            self._log.warning(_EVENTS[kind], kind=kind, reason=reason)

    def _miss(self, key: EmbeddingKey, result: str) -> EmbeddingNotFound:
        """Count a read that found no usable value, and return the error for it."""
        self._metrics.read(result)
        return not_found(key)


def _presence(deleted: bytes | None, checksum: bytes | None) -> Presence:
    if deleted:
        return Presence.DELETED
    return Presence.ABSENT if checksum is None else Presence.STORED
