"""JWT bearer tokens (RFC 7519), verified with public keys from a JWKS file (RFC 7517)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from samserve.errors import Misconfigured, Unauthenticated
from samserve.security.strict import TENANT_PATTERN

MAX_BYTES = 1 << 20
MAX_TOKEN_CHARACTERS = 8192

# Asymmetric signatures only: with a shared secret, every verifier could also issue tokens.
_ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
# A shared secret is not skipped but an error: it must not be in the file.
_KNOWN_ALGORITHMS = (*_ALGORITHMS, "HS256", "HS384", "HS512")
# A tuple and not a set: values in the file may be of unhashable types.
_CURVES = (("EC", "P-256"), ("EC", "P-384"), ("EC", "P-521"), ("OKP", "Ed25519"))
_MIN_RSA_BITS = 2048
# Exceptions of PyJWT for malformed input, its own and others.
_FOREIGN_ERRORS = (jwt.PyJWTError, ValueError, TypeError, LookupError, RecursionError)


@dataclass(frozen=True, slots=True, eq=False)
class Claims:
    """The claims of a verified token."""

    tenant: str
    roles: tuple[str, ...]
    subject: str


class KeySet:
    """The public keys of one file, by key id."""

    def __init__(self, keys: Mapping[str, jwt.PyJWK]) -> None:
        self._keys = keys

    def choose(self, key_id: object) -> jwt.PyJWK:
        """Return the key with this id; a token without an id requires a file with one key."""
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        key = self._keys.get(key_id) if isinstance(key_id, str) else None
        if key is None:
            raise Unauthenticated("the token is signed with an unknown key")
        return key


@dataclass(frozen=True, slots=True)
class TokenRules:
    """Required claims of a token; *leeway_s* is the accepted difference between clocks."""

    issuer: str
    audience: str
    tenant_claim: str = "tenant"
    roles_claim: str = "roles"
    leeway_s: float = 30.0

    def verify(self, token: str, keys: KeySet) -> Claims:
        """Check signature, issuer, audience, expiry and claims.  Raises `Unauthenticated`."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise Unauthenticated(f"the token has more than {MAX_TOKEN_CHARACTERS} characters")
        return self._claims(self._payload(token, keys))

    def _payload(self, token: str, keys: KeySet) -> Mapping[str, Any]:
        try:
            key = keys.choose(jwt.get_unverified_header(token).get("kid"))
            return jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self.audience,
                issuer=self.issuer,
                leeway=self.leeway_s,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired") from None
        except _FOREIGN_ERRORS:
            # The error does not say which part is invalid; the original text may quote the token.
            raise Unauthenticated("the token is not valid") from None

    def _claims(self, payload: Mapping[str, Any]) -> Claims:
        tenant = payload.get(self.tenant_claim)
        if not isinstance(tenant, str) or not re.fullmatch(TENANT_PATTERN, tenant):
            raise Unauthenticated(f"the token has no valid claim {self.tenant_claim!r}")
        subject = payload.get("sub", "")
        known = isinstance(subject, str) and re.fullmatch(TENANT_PATTERN, subject)
        return Claims(tenant, self._roles(payload), subject if known else "token")

    def _roles(self, payload: Mapping[str, Any]) -> tuple[str, ...]:
        roles = payload.get(self.roles_claim, ())
        if isinstance(roles, str):
            # RFC 8693's `scope` is one string.
            roles = roles.split()
        if not isinstance(roles, list | tuple) or not all(isinstance(role, str) for role in roles):
            raise Unauthenticated(f"the token's claim {self.roles_claim!r} is not a list of names")
        return tuple(roles)


def parse_jwks(data: bytes) -> KeySet:
    """Parse a JWKS file (JSON).  Raises `Misconfigured`, also if it contains no usable key."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise Misconfigured("JWKS file: is not valid JSON") from None
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise Misconfigured("JWKS file: must have a list `keys`")
    keys = {}
    for index, entry in enumerate(entries):
        if not _is_relevant(entry):
            continue
        key = _parse_key(index, entry)
        name = key.key_id or f"#{index}"
        if name in keys:
            raise Misconfigured(f"JWKS file: keys[{index}] has a duplicate kid")
        keys[name] = key
    if not keys:
        raise Misconfigured("JWKS file: contains no signature key")
    return KeySet(keys)


def _is_relevant(entry: object) -> bool:
    """Return false for encryption keys and unknown types, to be ignored (RFC 7517, section 5)."""
    if not isinstance(entry, dict):
        return True
    kind = entry.get("kty"), entry.get("crv")
    known = kind[0] in ("RSA", "oct") or kind in _CURVES
    return (
        known
        and entry.get("use", "sig") == "sig"
        and entry.get("alg", "RS256") in _KNOWN_ALGORITHMS
    )


def _parse_key(index: int, entry: object) -> jwt.PyJWK:
    where = f"JWKS file: keys[{index}]"
    if not isinstance(entry, dict):
        raise Misconfigured(f"{where} is not an object")
    if entry.get("kty") == "oct" or "d" in entry:
        raise Misconfigured(f"{where} is a secret key; only public keys are allowed")
    if not isinstance(entry.get("kid", ""), str):
        raise Misconfigured(f"{where} has a kid that is not a string")
    try:
        key = jwt.PyJWK(entry)
    except _FOREIGN_ERRORS:
        raise Misconfigured(f"{where} is not a valid public key") from None
    if key.algorithm_name not in _ALGORITHMS:
        raise Misconfigured(f"{where} has an unsupported algorithm")
    if key.key_type == "RSA" and key.key.key_size < _MIN_RSA_BITS:
        raise Misconfigured(f"{where} has fewer than {_MIN_RSA_BITS} bits")
    return key
