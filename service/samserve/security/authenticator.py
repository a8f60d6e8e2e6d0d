"""Authentication of calls by API key, bearer token or client certificate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from samserve.errors import PermissionDenied, Unauthenticated
from samserve.security.keys import PREFIX, KeyRing
from samserve.security.policy import OPEN_POLICY, Policy
from samserve.security.principal import ANONYMOUS, Principal
from samserve.security.tokens import Claims, KeySet, TokenRules
from samserve.system.reloading import ReloadableFile

HEADER = "authorization"
SCHEME = "bearer "


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """How bearer tokens are verified: the public keys and the rules for claims."""

    keys: ReloadableFile[KeySet]
    rules: TokenRules


class Authenticator:
    """Authenticates callers by API key, bearer token or client certificate.

    If none of these is configured, every caller is the default tenant with all permissions.  Once
    credentials have been required, they are required until the process ends.  *identities* are the
    names in client certificates that are accepted; if empty, every certificate that the TLS
    handshake has verified is accepted.
    """

    def __init__(
        self,
        policy: ReloadableFile[Policy] | None = None,
        *,
        keys: ReloadableFile[KeyRing] | None = None,
        tokens: Tokens | None = None,
        identities: Iterable[str] = (),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._policy = policy
        self._keys = keys
        self._tokens = tokens
        self._identities = frozenset(identities)
        self._now = now
        self._required = keys is not None or tokens is not None

    @property
    def required(self) -> bool:
        """Whether calls without credentials are rejected."""
        # A reloaded policy without identities must not disable authentication.
        self._required = self._required or self._has_identities
        return self._required

    @property
    def reads_certificates(self) -> bool:
        """Whether names in client certificates are evaluated."""
        return self._has_identities or bool(self._identities)

    @property
    def _has_identities(self) -> bool:
        return self._policy is not None and bool(self._policy.value.identities)

    def authenticate(
        self, authorization: Sequence[str], identities: Iterable[str] = ()
    ) -> Principal:
        """Return the caller.

        *authorization* are the values of that header, *identities* the names in the verified
        client certificate, if there is one.  Raises `Unauthenticated`, or `PermissionDenied` for a
        certificate that is not in the list of accepted identities.
        """
        names = tuple(identities)
        if self._identities and self._identities.isdisjoint(names):
            raise PermissionDenied("the client certificate is not one of tls.client_identities")
        if not self.required:
            return ANONYMOUS
        if authorization:
            return self._authenticate_header(authorization)
        return self._authenticate_certificate(names)

    def _authenticate_header(self, authorization: Sequence[str]) -> Principal:
        text = authorization[0]
        if len(authorization) > 1 or not text.lower().startswith(SCHEME):
            raise Unauthenticated("the authorization header must be one `Bearer` credential")
        credential = text[len(SCHEME) :].strip()
        if credential.startswith(PREFIX):
            if self._keys is None:
                raise Unauthenticated("this server does not accept API keys")
            entry = self._keys.value.find(credential, self._now())
            return self._principal(Claims(entry.tenant, entry.roles, f"key:{entry.id}"))
        if self._tokens is None:
            raise Unauthenticated(
                "this server does not accept bearer tokens, or the API key is malformed"
            )
        claims = self._tokens.rules.verify(credential, self._tokens.keys.value)
        return self._principal(Claims(claims.tenant, claims.roles, f"token:{claims.subject}"))

    def _authenticate_certificate(self, names: tuple[str, ...]) -> Principal:
        listed = self._policy.value.identities if self._policy is not None else {}
        for name in names:
            identity = listed.get(name)
            if identity is not None:
                return self._principal(
                    Claims(identity.tenant, identity.roles, f"certificate:{name}")
                )
        raise Unauthenticated(
            f"credentials are required: metadata `{HEADER}: Bearer ...` with an API key or a token"
        )

    def _principal(self, claims: Claims) -> Principal:
        policy = self._policy.value if self._policy is not None else OPEN_POLICY
        roles = policy.roles_of(claims.tenant, claims.roles)
        return Principal(claims.tenant, policy.permissions(roles), claims.subject)
