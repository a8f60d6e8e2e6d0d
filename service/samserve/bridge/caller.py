"""The caller of a request: its credential, which is passed on to the gateways."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller: ``credential`` is an API key or bearer token of samserve, empty without one.

    ``name`` is for logs; it is that of the tokens file, or empty.
    """

    credential: str = field(default="", repr=False)
    request_id: str = ""
    name: str = ""

    @property
    def owner(self) -> bytes:
        """The SHA-256 of the credential: what belongs to one credential is found by no other."""
        return hashlib.sha256(self.credential.encode()).digest()
