"""The shared cache: reads, writes and deletes embeddings on its servers."""

from __future__ import annotations

import hashlib
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

from samserve.errors import EmbeddingNotFound, StoreUnavailable
from samserve.settings import CacheSettings
from samserve.stores.base import not_found
from samserve.stores.shared import durability, value_format
from samserve.stores.shared.base import Batch, CacheServers, Command, Refused, Reply
from samserve.stores.shared.scripts import (
    CHECKSUM,
    DELETE,
    MAYBE,
    PUT,
    REMOVE,
    RENEW,
    VALUE,
    needs_majority,
    parts_of,
)
from samserve.stores.shared.value_format import Unusable, Value
from samserve.system.background import supervised
from samserve.telemetry.metrics.store import CacheMetrics
from samserve.types import EmbeddingKey

_MARKER_BYTES = 16
# What a replica gets to confirm a deletion, which is done in any case.
_CONFIRM_S = 0.1
_LOG_EVERY_S = 10.0
# Until it is listened for deletions again after an unexpected exception.
_RESTART_S = 10.0
_REFUSES = "the shared cache refuses commands"
_EVENTS = {
    "full": _REFUSES,
    "refused": _REFUSES,
    "damaged": "a value arrived damaged and was read again",
    "not durable": "the shared cache does not make embeddings durable",
}


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
        self, servers: CacheServers, settings: CacheSettings, metrics: CacheMetrics
    ) -> None:
        self._servers = servers
        self._settings = settings
        self._metrics = metrics
        self._log = structlog.get_logger("samserve.cache")
        # The size that a read is taken to have, which is not known before.
        self._largest = 4 << 20
        self._channel = f"{settings.prefix}:deleted".encode()
        # When each kind of refusal was logged last.
        self._logged_at: dict[str, float] = {}

    def listening(
        self, deleted: Callable[[EmbeddingKey], None], missed: Callable[[], None]
    ) -> AbstractAsyncContextManager[None]:
        """Call *deleted* for what any gateway deletes while the block runs, as far as it is heard.

        *missed* is called when some may not have been.  Nothing relies on it: a lost message is
        made up for by the next `check` of the key.  It takes an embedding out of the memory of
        gateways where it is not used.
        """

        def heard(name: bytes) -> None:
            # Neither prefix nor tenant has a colon in it.
            parts = name.decode(errors="replace").split(":", 2)
            if len(parts) == 3:
                deleted(EmbeddingKey(unquote(parts[1]), parts[2]))

        listen = partial(self._servers.listen, self._channel, missed, heard)
        return supervised(listen, "listening for deletions failed", _RESTART_S, "samserve.cache")

    def name(self, key: EmbeddingKey) -> bytes:
        """Name the key in the cluster: ``prefix:tenant:id``, the tenant percent-encoded."""
        tenant = quote(key.tenant, safe="")
        return f"{self._settings.prefix}:{tenant}:{key.embedding_id}".encode()

    async def deletion_marker(self, key: EmbeddingKey) -> bytes:
        """Return the marker of a deletion that is in force, empty if there is none.

        Who encodes asks first: what is deleted afterwards has another marker, see `put`.
        """
        (marker,) = parts_of(await self._run(key, ("HGET", self.name(key), "deleted")), MAYBE)
        return marker or b""

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
        """Return what other gateways find, without reading the value."""
        name = self.name(key)
        command = ("HMGET", name, "deleted", CHECKSUM)
        found, _ = await self._run(key, command, needs_majority(name), needed=1)
        return _presence(*parts_of(found, MAYBE, MAYBE))

    async def renew(self, key: EmbeddingKey, ttl_s: float, *, durable: bool = False) -> Presence:
        """Start the time to live of a value again; with *durable*, on a replica and on disk too.

        Raises `StoreUnavailable` if a value that is there is not confirmed, see `durability`.
        """
        command = ("EVAL", RENEW, 1, self.name(key), round(ttl_s * 1000))
        found, lack = await self._write(key, command, durable=durable)
        return self._confirmed(_presence(*parts_of(found, MAYBE, MAYBE)), lack)

    async def put(
        self,
        key: EmbeddingKey,
        data: bytes,
        ttl_s: float,
        *,
        marker: bytes = b"",
        durable: bool = False,
    ) -> Outcome:
        """Write the value unless there is one, or a deletion with another *marker*.

        With *durable*, see `renew`.
        """
        checksum = value_format.checksum(data)
        command = ("EVAL", PUT, 1, self.name(key), marker, data, checksum, round(ttl_s * 1000))
        self._metrics.bytes.labels("out").inc(len(data))
        self._largest = max(self._largest, len(data))
        reply, lack = await self._write(key, command, nbytes=len(data), durable=durable)
        outcome, found = parts_of(reply, bytes, bytes)
        self._metrics.writes.labels(outcome.decode()).inc()
        presence = Presence.DELETED if outcome == b"deleted" else Presence.STORED
        return Outcome(self._confirmed(presence, lack), found == checksum)

    async def delete(self, key: EmbeddingKey, ttl_s: float) -> bool:
        """Delete for all gateways, and for what is being written; False if nothing was there."""
        marker = secrets.token_bytes(_MARKER_BYTES)
        command = ("EVAL", DELETE, 1, self.name(key), marker, round(ttl_s * 1000))
        # All nodes pass it on to their listeners.
        notice = ("PUBLISH", self._channel, self.name(key))
        # A master that dies now must not take the deletion with it.
        wait_s = _CONFIRM_S if self._servers.health().has_replicas else 0.0
        wait = [("WAIT", 1, round(wait_s * 1000))] if wait_s else []
        replies = await self._run(key, command, notice, *wait, extra_s=wait_s, needed=1)
        return bool(replies[0] == 1)

    async def _fetch(self, key: EmbeddingKey, *, fresh: bool = False) -> tuple[bytes, float | None]:
        """Return the bytes of the value and the seconds that it has left, None without end."""
        name = self.name(key)
        try:
            *replies, _ = await self._run(
                key,
                ("HMGET", name, "deleted", VALUE),
                ("PTTL", name),
                ("HLEN", name),
                needs_majority(name),
                nbytes=self._largest,
                needed=3,
                fresh=fresh,
            )
        except StoreUnavailable:
            self._metrics.read("unavailable")
            raise
        found, ttl_ms, fields = parts_of(replies, list, int, int)
        deleted, data = parts_of(found, MAYBE, MAYBE)
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
            (removed,) = await self._run(key, ("EVAL", REMOVE, 1, name, digest))
            what = "a damaged value was removed" if removed else "values arrive damaged"
            self._log.warning(what, key=name.decode(), reason=str(error))
            raise self._missing(key, "damaged") from None
        self._metrics.failures.labels("damaged").inc()
        self._log_sometimes("damaged", reason)
        return value

    async def _write(
        self, key: EmbeddingKey, command: Command, *, nbytes: int = 0, durable: bool = False
    ) -> tuple[Reply, str]:
        """Return the reply, and what it lacks of being durable if that is wanted."""
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
        """Return *presence*.  Raises `StoreUnavailable` for a value that lacks something."""
        if lack and presence is Presence.STORED:
            self._log_sometimes("not durable", lack)
            raise StoreUnavailable(lack)
        return presence

    async def _run(
        self, key: EmbeddingKey, *commands: Command, needed: int | None = None, **how: Any
    ) -> list[Reply]:
        """Run *commands*, the first *needed* of which must not be refused; see `Batch`."""
        try:
            batch = Batch(commands, key.tenant, **how)
            replies = await self._servers.run(self.name(key), batch)
        except StoreUnavailable:
            self._metrics.failures.labels("unavailable").inc()
            raise
        refused = next((each for each in replies[:needed] if isinstance(each, Refused)), None)
        if refused is None:
            return replies
        full = refused.kind == "full"
        kind = "full" if full else "refused"
        self._metrics.failures.labels(kind).inc()
        self._log_sometimes(kind, refused.text[:200])
        raise StoreUnavailable(
            "the shared cache is full" if full else "the shared cache has refused a command"
        )

    def _log_sometimes(self, kind: str, reason: str) -> None:
        """Log what the shared cache does not do, each kind every few seconds at most."""
        now = time.monotonic()
        if now - self._logged_at.get(kind, -_LOG_EVERY_S) >= _LOG_EVERY_S:
            self._logged_at[kind] = now
            self._log.warning(_EVENTS[kind], kind=kind, reason=reason)

    def _missing(self, key: EmbeddingKey, result: str) -> EmbeddingNotFound:
        self._metrics.read(result)
        return not_found(key)


def _presence(deleted: bytes | None, checksum: bytes | None) -> Presence:
    if deleted:
        return Presence.DELETED
    return Presence.ABSENT if checksum is None else Presence.STORED
