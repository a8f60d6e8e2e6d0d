"""API keys: generated here, stored as salted hashes, compared in constant time.

A key is ``samserve_<id>_<secret>``.  The id is public: it names the key in logs and in the file.
The secret is 256 random bits, which cannot be guessed.  A slow hash protects secrets that people
choose; here it would only let unauthenticated clients use CPU time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AwareDatetime, StringConstraints, field_validator

from samserve.errors import Unauthenticated
from samserve.security.policy import Name, Tenant
from samserve.security.strict import Strict, read_toml

PREFIX = "samserve_"
MAX_BYTES = 8 << 20

_KEY = re.compile(r"samserve_([a-z0-9]{12})_([A-Za-z0-9_-]{43})")
_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_UNKNOWN_KEY = "the API key is unknown"


class KeyEntry(Strict):
    """One key as it is stored."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{12}$")]
    tenant: Tenant
    hash: str
    roles: tuple[Name, ...] = ()
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None
    note: Annotated[str, StringConstraints(max_length=200)] = ""

    @field_validator("hash")
    @classmethod
    def _check_hash(cls, text: str) -> str:
        _read_hash(text)
        return text

    def is_expired(self, now: datetime) -> bool:
        """Return whether the key has expired."""
        return self.expires is not None and now >= self.expires

    def to_toml(self) -> str:
        """Return the entry as a table of a key file (TOML)."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield "[[keys]]"
        for name in ("id", "tenant", "roles", "hash", "note"):
            value = getattr(self, name)
            if value:
                yield f"{name} = {_toml(value)}"
        for name in ("created", "expires"):
            moment: datetime | None = getattr(self, name)
            if moment is not None:
                yield f"{name} = {moment.isoformat(timespec='seconds')}"


class _KeyFile(Strict):
    keys: tuple[KeyEntry, ...] = ()

    @field_validator("keys")
    @classmethod
    def _check_ids(cls, keys: tuple[KeyEntry, ...]) -> tuple[KeyEntry, ...]:
        seen: set[str] = set()
        for key in keys:
            if key.id in seen:
                raise ValueError(f"duplicate key id {key.id}")
            seen.add(key.id)
        return keys


class KeyRing:
    """The keys of one file."""

    def __init__(self, entries: tuple[KeyEntry, ...]) -> None:
        self.entries = entries
        self._by_id = {entry.id: entry for entry in entries}

    def find(self, key: str, now: datetime) -> KeyEntry:
        """Return the entry of a key.  Raises `Unauthenticated`, equal for a wrong id or secret."""
        match = _KEY.fullmatch(key)
        if match is None:
            raise Unauthenticated("the API key is malformed")
        entry = self._by_id.get(match[1])
        # An unknown id takes as long as a wrong secret, with the same error.
        salt, digest = _read_hash(entry.hash if entry is not None else _DUMMY_HASH)
        same = hmac.compare_digest(_digest(salt, key), digest)
        if entry is None or not same:
            raise Unauthenticated(_UNKNOWN_KEY)
        if entry.is_expired(now):
            raise Unauthenticated("the API key has expired")
        return entry


def new_key() -> str:
    """Return a new random key, which authenticates its holder."""
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(12))
    return f"{PREFIX}{key_id}_{secrets.token_urlsafe(32)}"


def entry_for(
    key: str,
    tenant: str,
    roles: tuple[str, ...],
    *,
    expires: datetime | None = None,
    note: str = "",
) -> KeyEntry:
    """Return the entry that is stored for *key*.

    Raises `ValueError` if the key does not have the form of `new_key` (pydantic's
    `ValidationError`, if a name is not valid).
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise ValueError("the key was not created by `samserve keys create`")
    salt = secrets.token_bytes(16)
    now = datetime.now(UTC).replace(microsecond=0)
    return KeyEntry(
        id=match[1],
        tenant=tenant,
        roles=roles,
        hash=_write_hash(salt, _digest(salt, key)),
        created=now,
        expires=expires,
        note=note,
    )


def parse_keys(data: bytes) -> KeyRing:
    """Parse a key file (TOML).  Raises `Misconfigured`."""
    return KeyRing(read_toml("key file", data, _KeyFile).keys)


def _toml(value: str | tuple[str, ...]) -> str:
    """Return a value as JSON, which is valid TOML except for DEL, which TOML requires escaped.

    ASCII output is not an option: JSON would escape surrogates, which TOML does not accept.
    """
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _digest(salt: bytes, key: str) -> bytes:
    return hashlib.sha256(salt + key.encode()).digest()


def _write_hash(salt: bytes, digest: bytes) -> str:
    return f"sha256:{base64.b64encode(salt).decode()}:{base64.b64encode(digest).decode()}"


def _read_hash(text: str) -> tuple[bytes, bytes]:
    kind, _, rest = text.partition(":")
    salt, _, digest = rest.partition(":")
    try:
        decoded = base64.b64decode(salt, validate=True), base64.b64decode(digest, validate=True)
    except ValueError:
        decoded = (b"", b"")
    if kind != "sha256" or len(decoded[0]) < 8 or len(decoded[1]) != 32:
        raise ValueError("must be a hash written by `samserve keys`")
    return decoded


_DUMMY_HASH = _write_hash(bytes(16), bytes(32))
