"""Embeddings in the cluster: what is stored under a key, and how it changes.

Under each key is one hash, so that all of an embedding is in one slot and changes in one step:

========== =====================================================================================
``v1``     the value of format 1, see `value_format`; another format is another
           field, so gateways of two versions serve side by side
``s1``     the checksum of ``v1``, to tell values apart without reading them
``deleted`` a random token: the embedding was deleted.  No other field is there then
========== =====================================================================================

The key expires as a whole.  Every change is one script, because what is stored depends on whether
the embedding was deleted in the meantime.
"""

from __future__ import annotations

import hashlib
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
from samserve.settings import CacheSettings
from samserve.stores.base import not_found
from samserve.stores.shared import durability, value_format
from samserve.stores.shared.invalidation import Notices
from samserve.stores.shared.redis.cluster import ClusterClient
from samserve.stores.shared.redis.node import Command, Reply
from samserve.stores.shared.value_format import Unusable, Value
from samserve.telemetry.metrics.store import CacheMetrics
from samserve.types import EmbeddingKey

_VALUE, _CHECKSUM = f"v{value_format.FORMAT}", f"s{value_format.FORMAT}"
_TOKEN_BYTES = 16
# What a replica gets to confirm a deletion, which is done in any case.
_CONFIRM_S = 0.1
_SAY_EVERY_S = 10.0
_REFUSES = "the shared cache refuses commands"
_SAID = {
    "full": _REFUSES,
    "refused": _REFUSES,
    "damaged": "a value arrived damaged and was read again",
    "not durable": "the shared cache does not make embeddings durable",
}
_MAYBE = (bytes, type(None))

# ARGV: token that the writer has seen, value, checksum, milliseconds to live.  HSET comes first: a
# script that has begun to write is not stopped for want of memory.  What is there is written to as
# well, by its expiry: a replica can only confirm what this connection has written.
_PUT = f"""
local token = redis.call('HGET', KEYS[1], 'deleted')
if token and token ~= ARGV[1] then return {{'deleted', token}} end
local checksum = redis.call('HGET', KEYS[1], '{_CHECKSUM}')
local outcome = checksum and 'exists' or 'stored'
if not checksum then
  redis.call('HSET', KEYS[1], '{_VALUE}', ARGV[2], '{_CHECKSUM}', ARGV[3])
  redis.call('HDEL', KEYS[1], 'deleted')
end
redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[4])))
return {{outcome, checksum or ARGV[3]}}
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
# ARGV: SHA-1 of the bytes that are damaged.  Others were damaged on their way, and stay.
_REMOVE = f"""
local value = redis.call('HGET', KEYS[1], '{_VALUE}')
if value and redis.sha1hex(value) == ARGV[1] then
  return redis.call('HDEL', KEYS[1], '{_VALUE}', '{_CHECKSUM}')
end
return 0
"""


def _if_it_serves(name: bytes) -> Command:
    """Give a command that changes nothing, and that only a node which sees the majority takes.

    A master that is cut off from the others does not know what was deleted since.  It refuses to
    write after ``cluster-node-timeout``; ``cluster-allow-reads-when-down`` has it answer reads for
    as long as that lasts.  So each read that tells of deletions goes with a write.
    """
    return ("HDEL", name, "")


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

        A value that arrives damaged is read again over a new connection, and removed if it is
        damaged in the cluster.  One of another format or model is neither used nor removed.
        """
        data, ttl_s = await self._fetch(key)
        try:
            value = value_format.parse(self.name(key), data)
        except Unusable as error:
            # Another format has another field, so this field holds one by damage only.
            data, ttl_s = await self._fetch(key, fresh=True)
            value = await self._parse_again(key, data, str(error))
        self._largest = max(self._largest, len(data))
        if not usable(value):
            raise self._missing(key, "model")
        self._metrics.read("hit")
        return Found(value, ttl_s)

    async def check(self, key: EmbeddingKey) -> Presence:
        """See what others find, without reading the value."""
        name = self.name(key)
        command = ("HMGET", name, "deleted", _CHECKSUM)
        found, _ = await self._run(key, command, _if_it_serves(name), needed=1)
        return _presence(*_read(found, _MAYBE, _MAYBE))

    async def renew(self, key: EmbeddingKey, ttl_s: float, *, durable: bool = False) -> Presence:
        """Start the time to live of a value again; with *durable*, on a replica and on disk too.

        Raises `StoreUnavailable` if a value that is there is not confirmed, see `durability`.
        """
        command = ("EVAL", _RENEW, 1, self.name(key), round(ttl_s * 1000))
        found, lack = await self._write(key, command, durable=durable)
        return self._confirmed(_presence(*_read(found, _MAYBE, _MAYBE)), lack)

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
        checksum = value_format.checksum(data)
        command = (
            *("EVAL", _PUT, 1, self.name(key)),
            *(token, data, checksum, round(ttl_s * 1000)),
        )
        self._metrics.bytes.labels("out").inc(len(data))
        self._largest = max(self._largest, len(data))
        reply, lack = await self._write(key, command, nbytes=len(data), durable=durable)
        outcome, found = _read(reply, bytes, bytes)
        self._metrics.writes.labels(outcome.decode()).inc()
        presence = Presence.DELETED if outcome == b"deleted" else Presence.STORED
        return Outcome(self._confirmed(presence, lack), found == checksum)

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

    async def _fetch(self, key: EmbeddingKey, *, fresh: bool = False) -> tuple[bytes, float | None]:
        """Give the bytes of the value and the seconds that it has left, None without end."""
        name = self.name(key)
        try:
            *replies, _ = await self._run(
                key,
                ("HMGET", name, "deleted", _VALUE),
                ("PTTL", name),
                ("HLEN", name),
                _if_it_serves(name),
                nbytes=self._largest,
                needed=3,
                fresh=fresh,
            )
        except StoreUnavailable:
            self._metrics.read("unavailable")
            raise
        found, ttl_ms, fields = _read(replies, list, int, int)
        deleted, data = _read(found, _MAYBE, _MAYBE)
        if deleted or data is None:
            others = not deleted and fields > 0
            raise self._missing(key, "deleted" if deleted else "format" if others else "miss")
        self._metrics.bytes.labels("in").inc(len(data))
        # -1 is a key that does not expire, -2 one that has done so meanwhile.
        return data, None if ttl_ms == -1 else max(0, ttl_ms) / 1000

    async def _parse_again(self, key: EmbeddingKey, data: bytes, reason: str) -> Value:
        """Parse what was read once more, for *reason*; what is damaged in the cluster is removed.

        Raises `EmbeddingNotFound`.
        """
        name = self.name(key)
        try:
            value = value_format.parse(name, data)
        except Unusable as error:
            digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
            (removed,) = await self._run(key, ("EVAL", _REMOVE, 1, name, digest))
            what = "a damaged value was removed" if removed else "values arrive damaged"
            self._log.warning(what, key=name.decode(), reason=str(error))
            raise self._missing(key, "damaged") from None
        self._metrics.failures.labels("damaged").inc()
        self._say("damaged", reason)
        return value

    async def _write(
        self, key: EmbeddingKey, command: Command, *, nbytes: int = 0, durable: bool = False
    ) -> tuple[Reply, str]:
        """Give the reply, and what it lacks of being durable if that is wanted."""
        if not durable:
            (reply,) = await self._run(key, command, nbytes=nbytes)
            return reply, ""
        waits = durability.confirmations(self._settings)
        extra_s = len(waits) * self._settings.durable_s
        reply, *confirmed = await self._run(
            key, command, *waits, nbytes=nbytes, extra_s=extra_s, needed=1
        )
        if not durability.is_unknown(confirmed):
            return reply, durability.missing(confirmed)
        (configuration,) = await self._run(key, durability.CONFIGURATION, needed=0)
        return reply, durability.missing(confirmed[:1]) or durability.missing_in(configuration)

    def _confirmed(self, presence: Presence, lack: str) -> Presence:
        """Give *presence*.  Raises `StoreUnavailable` for a value that lacks something."""
        if lack and presence is Presence.STORED:
            self._say("not durable", lack)
            raise StoreUnavailable(lack)
        return presence

    async def _run(
        self,
        key: EmbeddingKey,
        *commands: Command,
        needed: int | None = None,
        **how: Any,
    ) -> list[Reply]:
        """Run *commands*, of which the first *needed* must not be refused; see `Node.run`."""
        try:
            replies = await self._client.run(self.name(key), commands, tenant=key.tenant, **how)
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
        """Log now and then what the shared cache does not do."""
        now = time.monotonic()
        if now - self._said_at.get(kind, -_SAY_EVERY_S) >= _SAY_EVERY_S:
            self._said_at[kind] = now
            self._log.warning(_SAID[kind], kind=kind, reason=reason)

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
