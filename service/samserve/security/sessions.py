"""Sessions of the web page on a server without credentials: a one-time token begins each.

The token is in the address that the server prints, as a fragment, which browsers do not send.  The
page exchanges it for a credential, which authenticates its calls.  Pages of other origins, and
programs that were not given the address, have neither.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Sequence

from samserve.errors import SessionRequired, SessionTokenInvalid
from samserve.security.authenticator import SCHEME, Authenticator
from samserve.security.principal import Principal

MAX_SESSIONS = 64
"""Open sessions; a further one ends the oldest."""

_SECRET_BYTES = 32


class Sessions:
    """The current token, and the credentials of open sessions, in memory only.

    Of both, the digests are kept.  ``announce`` is called with each new token, after the previous
    one has been used.
    """

    def __init__(self) -> None:
        self.announce: Callable[[str], None] = lambda _: None
        self._token = b""
        # Digests of credentials, the oldest first.
        self._open: dict[bytes, None] = {}

    def issue(self) -> str:
        """Return a new token; the previous one is no longer valid."""
        token = secrets.token_urlsafe(_SECRET_BYTES)
        self._token = _digest(token)
        return token

    def exchange(self, token: str) -> str:
        """Begin a session, and return its credential; announce a new token.

        Raises `SessionTokenInvalid`, equal for a wrong and a used token.
        """
        # An empty digest equals none.
        if not hmac.compare_digest(_digest(token), self._token):
            raise SessionTokenInvalid(
                "the token is not valid, or has been used: open the latest address that "
                "`samserve serve` has printed"
            )
        while len(self._open) >= MAX_SESSIONS:
            del self._open[next(iter(self._open))]
        credential = secrets.token_urlsafe(_SECRET_BYTES)
        self._open[_digest(credential)] = None
        self.announce(self.issue())
        return credential

    def check(self, authorization: Sequence[str]) -> None:
        """Raise `SessionRequired` unless the header has the credential of an open session."""
        text = authorization[0] if len(authorization) == 1 else ""
        scheme, credential = text[: len(SCHEME)].lower(), text[len(SCHEME) :].strip()
        # Found by its digest: the time that this takes depends on no secret.
        if scheme != SCHEME or _digest(credential) not in self._open:
            raise SessionRequired(
                "calls over HTTP need a session: open the address that `samserve serve` has "
                "printed, or exchange its token at /web/session"
            )


class SessionAuthenticator:
    """Authenticates callers over HTTP: as over gRPC, and by a session if that needs nothing."""

    def __init__(self, authenticator: Authenticator, sessions: Sessions) -> None:
        self._authenticator = authenticator
        self._sessions = sessions

    @property
    def reads_certificates(self) -> bool:
        """See `Authenticator.reads_certificates`."""
        return self._authenticator.reads_certificates

    def authenticate(
        self, authorization: Sequence[str], identities: Iterable[str] = ()
    ) -> Principal:
        """Return the caller; see `Authenticator.authenticate`.  Raises also `SessionRequired`."""
        principal = self._authenticator.authenticate(authorization, identities)
        # A reloaded policy may require credentials now.
        if not self._authenticator.required:
            self._sessions.check(authorization)
        return principal


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()
