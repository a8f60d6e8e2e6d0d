"""Files of policy and keys, and the credentials of callers.

An input is one byte that selects the parser, and the file or the credential.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from samserve.errors import (
    Misconfigured,
    PermissionDenied,
    QuotaExceeded,
    SamserveError,
    Unauthenticated,
)
from samserve.security import certificates, keys, policy, tokens
from samserve.security.authenticator import Authenticator, Tokens
from samserve.security.quotas import Quotas

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_KEY = "samserve_abcdefghijkm_" + "A" * 43
_OTHER_KEY = "samserve_abcdefghijkn_" + "B" * 43
_ISSUER, _AUDIENCE = "https://issuer.example", "samserve"
_NEVER = 4102444800
_CURVE_KEY = ec.derive_private_key(12345, ec.SECP256R1())
_EDWARDS_KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
# A modulus can be parsed without known factors.
_MODULUS = base64.urlsafe_b64encode(b"\xc5" * 256).decode().rstrip("=")


def _entry(key: str) -> keys.KeyEntry:
    """Return the entry of a key, hashed with a constant salt."""
    hashed = keys._write_hash(bytes(16), keys._digest(bytes(16), key))
    return keys.KeyEntry(id=key[9:21], tenant="acme", roles=("predict",), hash=hashed, created=_NOW)


def _jwks() -> dict[str, Any]:
    curve = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(_CURVE_KEY.public_key()))
    edwards = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(_EDWARDS_KEY.public_key()))
    rsa = {"kty": "RSA", "n": _MODULUS, "e": "AQAB", "alg": "RS256"}
    return {
        "keys": [
            {**curve, "kid": "curve", "use": "sig", "alg": "ES256"},
            {**edwards, "kid": "edwards", "alg": "EdDSA"},
            {**rsa, "kid": "rsa"},
        ]
    }


_POLICY = b"""version = 1
[roles]
annotator = ["embed", "predict"]
[tenants.acme]
quota = "small"
roles = ["annotator"]
[quotas.default]
requests_per_s = 50.5
burst = 100
[quotas.small]
max_concurrent_embed = 2
max_cached_bytes = 1000000
max_image_megapixels = 10.0
max_prompts = 16
[server]
requests_per_s = 100
[identities."client.example"]
tenant = "acme"
roles = ["annotator"]
"""
_PARSED_POLICY = policy.parse_policy(_POLICY)
_KEYS = (_entry(_KEY).to_toml() + _entry(_OTHER_KEY).to_toml()).encode()
_JWKS = json.dumps(_jwks()).encode()
_CLAIMS = {
    "iss": _ISSUER,
    "aud": _AUDIENCE,
    "exp": _NEVER,
    "iat": 1,
    "nbf": 1,
    "sub": "alice",
    "tenant": "acme",
    "roles": ["annotator"],
}
WORDS = (
    *(b"[roles]", b"[quotas.default]", b"[tenants.x]", b'[identities."x"]', b"[[keys]]", b"[a.b]"),
    *(
        b'quota = "small"\n',
        b'roles = ["embed"]\n',
        b"burst = 1\n",
        b"max_prompts = 0\n",
        b"version",
    ),
    *(b"1e-320", b"inf", b"nan", b"1e9", b"[" * 700, b"0001-01-01T00:00:00Z", b"2030-01-01"),
    *(b'note = "\\u007f\\n"\n', b"2030-01-01T00:00:00+00:00:30", b"sha256:AAAA:AAAA", b"9" * 4400),
    *(b'"kty"', b'"alg"', b'"kid"', b'"use"', b'"crv"', b'"d"', b'"k"', b'"x5c"', b'"key_ops"'),
    *(b'"iss"', b'"aud"', b'"exp"', b'"nbf"', b'"iat"', b'"sub"', b'"tenant"', b'"crit"'),
    *(b'"b64"', b"null", b"true", b"[]", b"{}", b"1e400", b'"\\ud800"'),
)


def _reloadable(value: Any) -> Any:
    """Return a stand-in for a reloadable file with this content."""
    return SimpleNamespace(value=value)


_AUTHENTICATOR = Authenticator(
    _reloadable(_PARSED_POLICY),
    keys=_reloadable(keys.parse_keys(_KEYS)),
    tokens=Tokens(_reloadable(tokens.parse_jwks(_JWKS)), tokens.TokenRules(_ISSUER, _AUDIENCE)),
    now=lambda: _NOW,
)


def run(data: bytes) -> None:
    """Parse the file, or authenticate the caller."""
    kind, content = (data[0] if data else 0), data[1:]
    _KINDS[kind % len(_KINDS)](content)


@contextmanager
def _only(*documented: type[SamserveError]) -> Iterator[None]:
    """Fail for any samserve error other than the *documented* ones."""
    try:
        yield
    except SamserveError as error:
        if not isinstance(error, documented):
            raise AssertionError(f"{type(error).__name__} is not documented here") from error
        raise


def _policy(content: bytes) -> None:
    with _only(Misconfigured):
        parsed = policy.parse_policy(content)
    for tenant in ("acme", "unknown", *parsed.tenants):
        quota = parsed.quota(tenant)
        assert quota.bucket_size >= 1
        assert quota.max_image_pixels is None or quota.max_image_pixels >= 0
        parsed.permissions(parsed.roles_of(tenant, ()))
    _admit(parsed)


def _admit(parsed: policy.Policy) -> None:
    """Admit two concurrent calls per tenant; only `QuotaExceeded` may be raised."""
    quotas = Quotas(lambda: parsed, now=lambda: 0.0)
    for tenant in ("unknown", *parsed.tenants):
        with (
            _only(QuotaExceeded),
            quotas.admit("embed", tenant, "Embed"),
            quotas.admit("embed", tenant, "Embed"),
        ):
            quotas.allowance(tenant)


def _keys(content: bytes) -> None:
    with _only(Misconfigured):
        ring = keys.parse_keys(content)
    for entry in ring.entries:
        with _only():
            (parsed,) = keys.parse_keys(entry.to_toml().encode()).entries
        for name in ("id", "tenant", "roles", "hash", "note"):
            assert getattr(parsed, name) == getattr(entry, name)
    _ignore_unauthenticated(lambda: ring.find(_KEY, _NOW))


def _ignore_unauthenticated(function: Callable[[], object]) -> None:
    """Call *function* and ignore `Unauthenticated`: the file itself was accepted."""
    try:
        function()
    except Unauthenticated:
        return


def _key_set(content: bytes) -> None:
    with _only(Misconfigured):
        parsed = tokens.parse_jwks(content)
    rules = tokens.TokenRules(_ISSUER, _AUDIENCE)
    for token in _TOKENS:
        _ignore_unauthenticated(lambda token=token: rules.verify(token, parsed))  # type: ignore[misc]


def _header(content: bytes) -> None:
    _authenticate([content.decode("latin-1")])


def _credential(content: bytes) -> None:
    _authenticate(["Bearer " + content.decode("latin-1")])


def _token(content: bytes) -> None:
    """Check a token of any header, payload and signature, separated by zeros."""
    parts = (base64.urlsafe_b64encode(part).rstrip(b"=") for part in content.split(b"\0"))
    _credential(b".".join(parts))


def _signed(content: bytes) -> None:
    """Check a token of any payload with a valid signature."""
    key, algorithm, kid = _SIGNERS[len(content) % len(_SIGNERS)]
    token = jwt.PyJWS().encode(content, cast(Any, key), algorithm, {"kid": kid})
    _authenticate([f"Bearer {token}"])


def _certificate(content: bytes) -> None:
    _authenticate([], certificates.peer_names({"x509_common_name": [content]}))


def _chain(content: bytes) -> None:
    chain, _, key = content.partition(b"\0")
    with _only(Misconfigured):
        certificates.parse_server_certificate(chain, key, chain)


def _authenticate(headers: list[str], identities: Iterable[str] = ()) -> None:
    with _only(Unauthenticated, PermissionDenied):
        principal = _AUTHENTICATOR.authenticate(headers, identities)
    assert principal.tenant
    assert "\n" not in principal.subject or identities


_SIGNERS = ((_CURVE_KEY, "ES256", "curve"), (_EDWARDS_KEY, "EdDSA", "edwards"))
_TOKENS = [
    jwt.encode(_CLAIMS, cast(Any, key), algorithm, {"kid": kid}) for key, algorithm, kid in _SIGNERS
]
_KINDS: tuple[Callable[[bytes], None], ...] = (
    *(_policy, _keys, _key_set, _header, _credential, _token, _signed, _certificate, _chain),
)


def seeds() -> list[bytes]:
    """Return valid inputs of every kind, and empty ones."""
    pem, private = _certificate_files()
    single_key = json.dumps({"keys": [{**_jwks()["keys"][0], "kid": ""}]}).encode()
    valid = [
        *(_seed(_policy, _POLICY), _seed(_keys, _KEYS), _seed(_key_set, _JWKS)),
        *(_seed(_policy, b"version = 1"), _seed(_key_set, single_key)),
        *(_seed(_header, f"bearer {text}".encode()) for text in (_KEY, *_TOKENS)),
        *(_seed(_credential, text.encode()) for text in (_KEY, _OTHER_KEY, *_TOKENS)),
        *(_seed(_token, _unpacked(text)) for text in _TOKENS),
        *(_seed(_signed, json.dumps(_CLAIMS).encode() + b" " * pad) for pad in range(2)),
        *(_seed(_certificate, b"client.example"), _seed(_chain, pem + b"\0" + private)),
    ]
    return valid + [bytes([kind]) for kind in range(len(_KINDS))]


def _unpacked(token: str) -> bytes:
    return b"\0".join(base64.urlsafe_b64decode(part + "==") for part in token.split("."))


def _certificate_files() -> tuple[bytes, bytes]:
    """Return a certificate and its key; with Ed25519 the signature is deterministic."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "samserve")])
    builder = x509.CertificateBuilder(name, name, _EDWARDS_KEY.public_key(), 1, _NOW, _NOW)
    certificate = builder.sign(_EDWARDS_KEY, None)
    pem = serialization.Encoding.PEM
    key = _EDWARDS_KEY.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(pem), key


def _seed(kind: Callable[[bytes], None], content: bytes) -> bytes:
    return bytes([_KINDS.index(kind)]) + content
