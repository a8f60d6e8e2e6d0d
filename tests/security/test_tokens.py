"""Bearer tokens: valid and invalid ones."""

from __future__ import annotations

import hmac
import json
import time
from typing import Any

import jwt
import pytest
from samserve.errors import Misconfigured, Unauthenticated
from samserve.security.tokens import TokenRules, parse_jwks

from tests.secret_leaks import secret
from tests.security.credentials import AUDIENCE, ISSUER, jwk, jwks, signing_key, token

RULES = TokenRules(issuer=ISSUER, audience=AUDIENCE, leeway_s=5)
KEYS = parse_jwks(jwks(jwk()))


@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_a_token_of_a_known_key_is_valid(kind: str) -> None:
    claims = RULES.verify(token(kind=kind), parse_jwks(jwks(jwk(kind))))

    assert (claims.tenant, claims.roles, claims.subject) == (
        "acme",
        ("embed", "predict"),
        "some-user",
    )


# By name: a time in the id of a test would differ between the processes of a run.
WRONG_CLAIMS: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"exp": int(time.time()) - 60}, "expired"),
    "never expires": ({"exp": None}, "not valid"),
    "expires tomorrow": ({"exp": "tomorrow"}, "not valid"),
    "not yet": ({"nbf": int(time.time()) + 10**6}, "not valid"),
    "issued later": ({"iat": int(time.time()) + 10**6}, "not valid"),
    "another issuer": ({"iss": "https://evil.test"}, "not valid"),
    "no issuer": ({"iss": None}, "not valid"),
    "another audience": ({"aud": "another-service"}, "not valid"),
    "no audience": ({"aud": None}, "not valid"),
    "no tenant": ({"tenant": None}, "no valid claim 'tenant'"),
    "list of tenants": ({"tenant": ["acme"]}, "no valid claim 'tenant'"),
    "tenant of two lines": ({"tenant": "a\nb"}, "no valid claim 'tenant'"),
    "empty tenant": ({"tenant": ""}, "no valid claim 'tenant'"),
    "numbers as roles": ({"roles": [1, 2]}, "'roles' is not a list"),
    "table of roles": ({"roles": {"embed": True}}, "'roles' is not a list"),
    "unknown key": ({"headers": {"kid": "two"}}, "unknown key"),
    "another algorithm": ({"kind": "rsa"}, "not valid"),
}


@pytest.mark.parametrize("name", WRONG_CLAIMS)
def test_a_token_with_wrong_claims_is_rejected(name: str) -> None:
    arguments, problem = WRONG_CLAIMS[name]
    bad = token(**arguments)

    with pytest.raises(Unauthenticated, match=problem) as rejected:
        RULES.verify(bad, KEYS)

    assert bad not in str(rejected.value)
    # A log would contain the cause of the error, which may quote the token.
    assert rejected.value.__context__ is None or rejected.value.__suppress_context__


def test_an_unsigned_token_is_rejected() -> None:
    unsigned = jwt.encode({"tenant": "acme"}, "", algorithm="none")

    with pytest.raises(Unauthenticated):
        RULES.verify(unsigned, KEYS)


def test_a_token_signed_with_the_public_key_as_secret_is_rejected() -> None:
    """Algorithm confusion: HMAC with the public key as the secret."""
    public = json.dumps(jwk()).encode()
    payload = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 60, "tenant": "acme"}
    parts = [part(value) for value in ({"alg": "HS256", "kid": "one"}, payload)]
    mac = hmac.digest(public, b".".join(parts), "sha256")
    forged = b".".join([*parts, jwt.utils.base64url_encode(mac)]).decode()

    with pytest.raises(Unauthenticated):
        RULES.verify(forged, KEYS)


def part(value: Any) -> bytes:
    return jwt.utils.base64url_encode(json.dumps(value).encode())


def test_a_token_with_a_changed_character_is_rejected() -> None:
    good = token()
    # The last characters of a part may contain unused bits.
    for position in range(0, len(good) - 4, 7):
        if good[position] == "." or good[position + 1] == ".":
            continue
        other = "A" if good[position] != "A" else "B"
        with pytest.raises(Unauthenticated):
            RULES.verify(good[:position] + other + good[position + 1 :], KEYS)


def test_an_expired_token_within_the_leeway_is_valid() -> None:
    assert RULES.verify(token(exp=int(time.time()) - 2), KEYS).tenant == "acme"


def test_roles_may_be_one_string() -> None:
    assert RULES.verify(token(roles="embed predict"), KEYS).roles == ("embed", "predict")


@pytest.mark.parametrize(
    "unknown",
    [
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "kid": "new"},
        {"kty": "OKP", "crv": "Ed448", "x": "AA", "kid": "new"},
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA", "kid": "new"},
        jwk("rsa", "new", alg="RSA-OAEP"),
    ],
    ids=["curve", "ed448", "family", "encryption"],
)
def test_keys_of_unknown_types_are_ignored(unknown: dict[str, Any]) -> None:
    keys = parse_jwks(jwks(unknown, jwk()))

    assert RULES.verify(token(), keys).tenant == "acme"
    with pytest.raises(Unauthenticated, match="unknown key"):
        RULES.verify(token(headers={"kid": "new"}), keys)


def test_a_token_that_is_too_long_is_not_parsed() -> None:
    with pytest.raises(Unauthenticated, match="more than 8192 characters"):
        RULES.verify("a" * 8193, KEYS)


def test_a_token_without_a_key_id_requires_a_single_key() -> None:
    anonymous = secret(
        jwt.encode(
            {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 60, "tenant": "acme"},
            signing_key("ec"),
            "ES256",
        )
    )
    entry = jwk()

    assert RULES.verify(anonymous, parse_jwks(jwks(entry))).tenant == "acme"
    with pytest.raises(Unauthenticated):
        RULES.verify(anonymous, parse_jwks(jwks(entry, jwk("rsa", "two"))))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "must have a list"),
        (b'{"keys": 5}', "must have a list"),
        (b'{"keys": []}', "no signature key"),
        (b'{"keys": [5]}', r"keys\[0\] is not an object"),
        (b'{"keys": [{"kty": "oct", "k": "aGVsbG8"}]}', r"keys\[0\] is a secret"),
        (b'{"keys": [{"kty": "RSA", "n": "AQAB"}]}', r"is not a valid public key"),
        (
            b'{"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]}',
            "is not a valid public key",
        ),
        (jwks(jwk(d="AQAB")), r"keys\[0\] is a secret"),
        (jwks(jwk(kid=5)), "not a string"),
        (jwks(jwk(kty={}), jwk(crv=[]), jwk(use={}), jwk(alg=[])), "no signature key"),
        (jwks(jwk(use="enc")), "no signature key"),
        (jwks(jwk(), jwk()), r"keys\[1\] has a duplicate kid"),
        (jwks(jwk(alg="HS256")), "not a valid public key|unsupported algorithm"),
        (jwks(jwk("weak")), "fewer than 2048 bits"),
    ],
    # Keys differ between workers.
    ids=lambda value: "file" if isinstance(value, bytes) else value,
)
def test_errors_in_a_jwks_file_name_the_location(content: bytes, problem: str) -> None:
    with pytest.raises(Misconfigured, match=problem) as rejected:
        parse_jwks(content)

    assert "aGVsbG8" not in rejected.value.message
