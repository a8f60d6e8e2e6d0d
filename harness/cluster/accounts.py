"""Who may use the nodes: one account for clients, and the harness's own."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator

from harness.errors import HarnessError

EVERYTHING = "~* &* +@all"
_OWN = "harness"


class Accounts:
    """Accounts that the nodes start with; without a password anybody may do anything.

    With one, the default user is off (unless it is the one with the password), and the harness and
    the replication use an account of their own.  So a change of passwords does not reach them.
    """

    def __init__(self, user: str | None, password: str | None, rules: str = EVERYTHING) -> None:
        if user is not None and password is None:
            raise HarnessError(f"user {user!r} needs a password")
        self._rules = rules
        self._hashes: dict[str, str] = {}
        self.own: tuple[str, str] | None = None
        """Name and password of the harness's own account."""
        if password is not None:
            self._hashes[user or "default"] = _hash(password)
            self.own = (_OWN, secrets.token_hex(16))

    def directives(self) -> Iterator[str]:
        """Yield lines for the configuration of a node."""
        if self.own is None:
            return
        name, password = self.own
        yield f"user {name} on {_hash(password)} {EVERYTHING}"
        if "default" not in self._hashes:
            yield "user default off"
        for user, hashed in self._hashes.items():
            yield f"user {user} on {hashed} {self._rules}"
        yield f"masteruser {name}"
        yield f"masterauth {password}"


def _hash(password: str) -> str:
    """As ACL rules have it; a hash needs no quoting."""
    return f"#{hashlib.sha256(password.encode()).hexdigest()}"
