"""ACL users of the nodes: one for clients, and one for the harness."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator

from harness.errors import HarnessError

EVERYTHING = "~* &* +@all"
_OWN = "harness"


class Accounts:
    """The initial ACL users of the nodes; without a password, any client may do anything.

    With a password, the default user is disabled (unless the password is its own), and the harness
    and the replication use a separate user.  So a password change in a test does not affect them.
    """

    def __init__(self, user: str | None, password: str | None, rules: str = EVERYTHING) -> None:
        if user is not None and password is None:
            raise HarnessError(f"user {user!r} needs a password")
        self._rules = rules
        self._hashes: dict[str, str] = {}
        self.own: tuple[str, str] | None = None
        """Name and password of the harness's user."""
        if password is not None:
            self._hashes[user or "default"] = _hash(password)
            self.own = (_OWN, secrets.token_hex(16))

    def directives(self) -> Iterator[str]:
        """Yield the lines for the configuration of a node."""
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
    """Return the password as an ACL rule; a hash needs no quoting."""
    return f"#{hashlib.sha256(password.encode()).hexdigest()}"
