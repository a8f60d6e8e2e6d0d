"""API keys: made here, kept as salted hashes, compared in constant time.

A key is ``samserve_<id>_<secret>``.  The id is public: it names the key in logs and in the file.
The secret is 256 random bits, which nobody guesses; a slow hash, which protects secrets that people
choose, would only let strangers make the server work.
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
MOST_BYTES = 8 << 20

_KEY = re.compile(r"samserve_([a-z0-9]{12})_([A-Za-z0-9_-]{43})")
_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_REFUSED = "the API key is not known"


class KeyEntry(Strict):
    """One key as it is kept."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{12}$")]
    tenant: Tenant
    hash: str
    roles: tuple[Name, ...] = ()
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None
    note: Annotated[str, StringConstraints(max_length=200)] = ""

    @field_validator("hash")
    @classmethod
    def _is_a_hash(cls, text: str) -> str:
        _read_hash(text)
        return text

    def expired(self, now: datetime) -> bool:
        """Whether the key's time is over."""
        return self.expires is not None and now >= self.expires

    def toml(self) -> str:
        """Write the entry as a part of a key file."""
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
    def _ids_differ(cls, keys: tuple[KeyEntry, ...]) -> tuple[KeyEntry, ...]:
        seen: set[str] = set()
        for key in keys:
            if key.id in seen:
                raise ValueError(f"there are two keys of id {key.id}")
            seen.add(key.id)
        return keys


class KeyRing:
    """The keys of one file."""

    def __init__(self, entries: tuple[KeyEntry, ...]) -> None:
        self.entries = entries
        self._by_id = {entry.id: entry for entry in entries}

    def find(self, key: str, now: datetime) -> KeyEntry:
        """Find the entry of a key.  Raises `Unauthenticated`, the same for id and secret."""
        match = _KEY.fullmatch(key)
        if match is None:
            raise Unauthenticated("the API key is malformed")
        entry = self._by_id.get(match[1])
        # An unknown id costs what a wrong secret costs, and says the same.
        salt, digest = _read_hash(entry.hash if entry is not None else _NOBODY)
        same = hmac.compare_digest(_digest(salt, key), digest)
        if entry is None or not same:
            raise Unauthenticated(_REFUSED)
        if entry.expired(now):
            raise Unauthenticated("the API key has expired")
        return entry


def new_key() -> str:
    """Make a key; whoever has it is the caller that it stands for."""
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
    """Make what is kept of *key*.

    Raises `ValueError` if it is not one of `new_key`'s (pydantic's, if a name is not valid).
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise ValueError("this is not a key that `samserve keys new` has made")
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
    """Read a key file (TOML).  Raises `Misconfigured`."""
    return KeyRing(read_toml("key file", data, _KeyFile).keys)


def _toml(value: str | tuple[str, ...]) -> str:
    """Write a value as JSON, which TOML reads the same but for one character that it wants escaped.

    Surrogates, which JSON would escape, are no characters to TOML.
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
        raise ValueError("is not a hash that `samserve keys` has made")
    return decoded


_NOBODY = _write_hash(bytes(16), bytes(32))
