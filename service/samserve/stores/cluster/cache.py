"""Embeddings in the cluster: what is stored under a key, and how it changes.

Under each key is one hash, so that all of an embedding is in one slot and changes in one step:

========== =====================================================================================
``v1``     the value of format 1, see `samserve.stores.cluster.values`; another format is another
           field, so gateways of two versions serve side by side
``s1``     the checksum of ``v1``, to tell values apart without reading them
``deleted`` a random token: the embedding was deleted.  No other field is there then
========== =====================================================================================

The key expires as a whole.  Every change is one script, because what is stored depends on whether
the embedding was deleted in the meantime.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import quote, unquote

import structlog
from redis.exceptions import OutOfMemoryError, ResponseError

from samserve.errors import EmbeddingNotFound, StoreUnavailable
from samserve.metrics.cache import CacheMetrics
from samserve.settings import CacheSettings
from samserve.stores.base import not_found
from samserve.stores.cluster import values
from samserve.stores.cluster.client import ClusterClient
from samserve.stores.cluster.node import Command, Reply
from samserve.stores.cluster.notices import Notices
from samserve.stores.cluster.values import Unusable, Value
from samserve.types import EmbeddingKey

_VALUE, _CHECKSUM = f"v{values.FORMAT}", f"s{values.FORMAT}"
_TOKEN_BYTES = 16
# What a replica gets to confirm a deletion, which is done in any case.
_CONFIRM_S = 0.1
_SAY_EVERY_S = 10.0
_MAYBE = (bytes, type(None))

# ARGV: token that the writer has seen, value, checksum, milliseconds to live.  HSET comes first: a
# script that has begun to write is not stopped for want of memory.
_PUT = f"""
local token = redis.call('HGET', KEYS[1], 'deleted')
if token and token ~= ARGV[1] then return {{'deleted', token}} end
local checksum = redis.call('HGET', KEYS[1], '{_CHECKSUM}')
if checksum then return {{'exists', checksum}} end
redis.call('HSET', KEYS[1], '{_VALUE}', ARGV[2], '{_CHECKSUM}', ARGV[3])
redis.call('HDEL', KEYS[1], 'deleted')
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
return {{'stored', ARGV[3]}}
"""
# ARGV: milliseconds to live.
_RENEW = f"""
local found = redis.call('HMGET', KEYS[1], 'deleted', '{_CHECKSUM}')
if found[2] then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return found
"""
# ARGV: new token, milliseconds to live.  DEL comes first, for the same reason: this one must not be
# stopped.
_DELETE = f"""
local existed = redis.call('HEXISTS', KEYS[1], '{_CHECKSUM}')
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'deleted', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return existed
"""
# ARGV: checksum of the value that is damaged.
_REMOVE = f"""
if (redis.call('HGET', KEYS[1], '{_CHECKSUM}') or '') == ARGV[1] then
  return redis.call('HDEL', KEYS[1], '{_VALUE}', '{_CHECKSUM}')
end
return 0
"""


class Presence(Enum):
    """What other gateways find under a key."""

    ABSENT = "absent"
    STORED = "stored"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Found:
    """A value whose checksum holds, and the seconds that it has left, None without end."""

    value: Value
    ttl_s: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is under a key after an attempt to write; ``same`` if it is what was to be written."""

    presence: Presence
    same: bool = False


class SharedCache:
    """Reads and writes embeddings; every method raises `StoreUnavailable` if it cannot know."""

    def __init__(
        self, client: ClusterClient, settings: CacheSettings, metrics: CacheMetrics
    ) -> None:
        self._client = client
        self._settings = settings
        self._metrics = metrics
        self._log = structlog.get_logger("samserve.cache")
        # What a read is taken to be, since nobody knows it before.
        self._largest = 4 << 20
        channel = f"{settings.prefix}:deleted".encode()
        self._notices = Notices(client, channel, self._begin, self._hear)
        self._deleted: Callable[[EmbeddingKey], None] = lambda key: None
        self._missed: Callable[[], None] = lambda: None
        # When each kind of refusal was logged last.
        self._said_at: dict[str, float] = {}

    async def open(self) -> None:
        """Look for the cluster, which may be away."""
        await self._client.open()
        self._notices.open()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._notices.aclose()
        await self._client.aclose()

    def on_deleted(
        self, deleted: Callable[[EmbeddingKey], None], missed: Callable[[], None]
    ) -> None:
        """Have *deleted* called for what any gateway deletes, as far as that is heard of.

        *missed* is called when some may not have been.
        """
        self._deleted, self._missed = deleted, missed

    def name(self, key: EmbeddingKey) -> bytes:
        """Name the key in the cluster: ``prefix:tenant:id``, the tenant percent-encoded."""
        tenant = quote(key.tenant, safe="")
        return f"{self._settings.prefix}:{tenant}:{key.embedding_id}".encode()

    async def token(self, key: EmbeddingKey) -> bytes:
        """Give the token of a deletion that is in force, empty if there is none.

        Whoever encodes asks first: what is deleted afterwards has another token, see `put`.
        """
        (token,) = _read(await self._run(key, ("HGET", self.name(key), "deleted")), _MAYBE)
        return token or b""

    async def get(self, key: EmbeddingKey, usable: Callable[[Value], bool]) -> Found:
        """Read an embedding that *usable* accepts.  Raises `EmbeddingNotFound`.

        A damaged value is removed, one of another format or model is left alone.
        """
        name = self.name(key)
        try:
            replies = await self._run(
                key,
                ("HMGET", name, "deleted", _VALUE, _CHECKSUM),
                ("PTTL", name),
                ("HLEN", name),
                nbytes=self._largest,
            )
        except StoreUnavailable:
            self._metrics.read("unavailable")
            raise
        found, ttl_ms, fields = _read(replies, list, int, int)
        deleted, data, checksum = _read(found, _MAYBE, _MAYBE, _MAYBE)
        if deleted or data is None:
            others = not deleted and fields > 0
            raise self._missing(key, "deleted" if deleted else "format" if others else "miss")
        self._metrics.bytes.labels("in").inc(len(data))
        try:
            value = values.parse(name, data)
        except Unusable as error:
            # Another format has another field, so this field holds one by damage only.
            self._log.warning("a damaged value is removed", key=name.decode(), reason=str(error))
            await self._run(key, ("EVAL", _REMOVE, 1, name, checksum or b""))
            raise self._missing(key, "damaged") from None
        self._largest = max(self._largest, len(data))
        if not usable(value):
            raise self._missing(key, "model")
        self._metrics.read("hit")
        # -1 is a key that does not expire, -2 one that has done so meanwhile.
        return Found(value, None if ttl_ms == -1 else max(0, ttl_ms) / 1000)

    async def check(self, key: EmbeddingKey) -> Presence:
        """See what others find, without reading the value."""
        command = ("HMGET", self.name(key), "deleted", _CHECKSUM)
        (found,) = await self._run(key, command)
        return _presence(*_read(found, _MAYBE, _MAYBE))

    async def renew(self, key: EmbeddingKey, ttl_s: float, *, durable: bool = False) -> Presence:
        """Start the time to live of a value again; with *durable*, on a replica too.

        Raises `StoreUnavailable` if no replica confirms.
        """
        command = ("EVAL", _RENEW, 1, self.name(key), round(ttl_s * 1000))
        found = await self._write(key, command, durable=durable)
        return _presence(*_read(found, _MAYBE, _MAYBE))

    async def put(
        self,
        key: EmbeddingKey,
        data: bytes,
        ttl_s: float,
        *,
        token: bytes = b"",
        durable: bool = False,
    ) -> Outcome:
        """Write the value unless there is one, or a deletion of another *token* than that.

        With *durable*, see `renew`.
        """
        checksum = values.checksum(data)
        command = (
            *("EVAL", _PUT, 1, self.name(key)),
            *(token, data, checksum, round(ttl_s * 1000)),
        )
        self._metrics.bytes.labels("out").inc(len(data))
        self._largest = max(self._largest, len(data))
        reply = await self._write(key, command, nbytes=len(data), durable=durable)
        outcome, found = _read(reply, bytes, bytes)
        self._metrics.writes.labels(outcome.decode()).inc()
        presence = Presence.DELETED if outcome == b"deleted" else Presence.STORED
        return Outcome(presence, found == checksum)

    async def delete(self, key: EmbeddingKey, ttl_s: float) -> bool:
        """Delete for all gateways, and for what is being written; False if nothing was there."""
        token = secrets.token_bytes(_TOKEN_BYTES)
        command = ("EVAL", _DELETE, 1, self.name(key), token, round(ttl_s * 1000))
        notice = self._notices.command(self.name(key))
        # A master that dies now shall not take the deletion with it.
        wait_s = _CONFIRM_S if self._client.has_replicas else 0.0
        wait = [("WAIT", 1, round(wait_s * 1000))] if wait_s else []
        replies = await self._run(key, command, notice, *wait, extra_s=wait_s, needed=1)
        return bool(replies[0] == 1)

    def _begin(self) -> None:
        self._missed()

    def _hear(self, name: bytes) -> None:
        # Neither prefix nor tenant has a colon in it.
        parts = name.decode(errors="replace").split(":", 2)
        if len(parts) == 3:
            self._deleted(EmbeddingKey(unquote(parts[1]), parts[2]))

    async def _write(
        self, key: EmbeddingKey, command: Command, *, nbytes: int = 0, durable: bool = False
    ) -> Reply:
        if not durable:
            (reply,) = await self._run(key, command, nbytes=nbytes)
            return reply
        wait_s = self._settings.durable_s
        wait = ("WAIT", 1, round(wait_s * 1000))
        replies = await self._run(key, command, wait, nbytes=nbytes, extra_s=wait_s)
        reply, confirmed = _read(replies, object, int)
        if not confirmed:
            raise StoreUnavailable("no replica of the shared cache has confirmed the embedding")
        return reply

    async def _run(
        self,
        key: EmbeddingKey,
        *commands: Command,
        nbytes: int = 0,
        extra_s: float = 0.0,
        needed: int | None = None,
    ) -> list[Reply]:
        """Run *commands*, of which the first *needed* must not be refused."""
        try:
            replies = await self._client.run(
                self.name(key), commands, tenant=key.tenant, nbytes=nbytes, extra_s=extra_s
            )
        except StoreUnavailable:
            self._metrics.failures.labels("unavailable").inc()
            raise
        errors = [reply for reply in replies[:needed] if isinstance(reply, ResponseError)]
        if not errors:
            return replies
        error = errors[0]
        full = isinstance(error, OutOfMemoryError) or "OOM" in str(error)
        kind = "full" if full else "refused"
        self._metrics.failures.labels(kind).inc()
        self._say(kind, str(error)[:200])
        raise StoreUnavailable(
            "the shared cache is full" if full else "the shared cache has refused a command"
        )

    def _say(self, kind: str, reason: str) -> None:
        """Log a refusal now and then."""
        now = time.monotonic()
        if now - self._said_at.get(kind, -_SAY_EVERY_S) >= _SAY_EVERY_S:
            self._said_at[kind] = now
            self._log.warning("the shared cache refuses commands", kind=kind, reason=reason)

    def _missing(self, key: EmbeddingKey, result: str) -> EmbeddingNotFound:
        self._metrics.read(result)
        return not_found(key)


def _read(reply: Reply, *kinds: Any) -> tuple[Any, ...]:
    """Take a reply apart that has an element of each kind; others are as good as none."""
    right = isinstance(reply, list) and len(reply) == len(kinds)
    if right and all(isinstance(each, kind) for each, kind in zip(reply, kinds, strict=True)):
        return tuple(reply)
    raise StoreUnavailable("the shared cache does not answer as it should")


def _presence(deleted: bytes | None, checksum: bytes | None) -> Presence:
    if deleted:
        return Presence.DELETED
    return Presence.ABSENT if checksum is None else Presence.STORED
