"""Bearer tokens: which hold, and which never do."""

from __future__ import annotations

import hmac
import json
import time
from typing import Any

import jwt
import pytest
from samserve.errors import Misconfigured, Unauthenticated
from samserve.security.tokens import TokenRules, parse_jwks

from tests.secrecy import secret
from tests.security.credentials import AUDIENCE, ISSUER, jwk, jwks, signing_key, token

RULES = TokenRules(issuer=ISSUER, audience=AUDIENCE, leeway_s=5)
KEYS = parse_jwks(jwks(jwk()))


@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_a_token_of_a_known_key_holds(kind: str) -> None:
    claims = RULES.verify(token(kind=kind), parse_jwks(jwks(jwk(kind))))

    assert (claims.tenant, claims.roles, claims.subject) == (
        "acme",
        ("embed", "predict"),
        "somebody",
    )


# By name: a time in the id of a test would be another one in each process of a run.
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
    "no tenant": ({"tenant": None}, "no usable claim 'tenant'"),
    "list of tenants": ({"tenant": ["acme"]}, "no usable claim 'tenant'"),
    "tenant of two lines": ({"tenant": "a\nb"}, "no usable claim 'tenant'"),
    "empty tenant": ({"tenant": ""}, "no usable claim 'tenant'"),
    "numbers as roles": ({"roles": [1, 2]}, "'roles' is not a list"),
    "table of roles": ({"roles": {"embed": True}}, "'roles' is not a list"),
    "unknown key": ({"headers": {"kid": "two"}}, "key that is not known"),
    "another algorithm": ({"kind": "rsa"}, "not valid"),
}


@pytest.mark.parametrize("name", WRONG_CLAIMS)
def test_a_token_that_says_something_else_does_not(name: str) -> None:
    made, problem = WRONG_CLAIMS[name]
    bad = token(**made)

    with pytest.raises(Unauthenticated, match=problem) as refused:
        RULES.verify(bad, KEYS)

    assert bad not in str(refused.value)
    # A log would print what an error came from, and that may quote the token.
    assert refused.value.__context__ is None or refused.value.__suppress_context__


def test_a_token_without_a_signature_does_not_hold() -> None:
    unsigned = jwt.encode({"tenant": "acme"}, "", algorithm="none")

    with pytest.raises(Unauthenticated):
        RULES.verify(unsigned, KEYS)


def test_a_public_key_is_no_shared_secret() -> None:
    """The classic confusion: HMAC with the public key, which everybody has."""
    public = json.dumps(jwk()).encode()
    payload = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 60, "tenant": "acme"}
    parts = [part(value) for value in ({"alg": "HS256", "kid": "one"}, payload)]
    mac = hmac.digest(public, b".".join(parts), "sha256")
    forged = b".".join([*parts, jwt.utils.base64url_encode(mac)]).decode()

    with pytest.raises(Unauthenticated):
        RULES.verify(forged, KEYS)


def part(value: Any) -> bytes:
    return jwt.utils.base64url_encode(json.dumps(value).encode())


def test_every_changed_character_breaks_a_token() -> None:
    good = token()
    # The last characters of a part may hold bits that are not used.
    for position in range(0, len(good) - 4, 7):
        if good[position] == "." or good[position + 1] == ".":
            continue
        other = "A" if good[position] != "A" else "B"
        with pytest.raises(Unauthenticated):
            RULES.verify(good[:position] + other + good[position + 1 :], KEYS)


def test_a_token_within_the_leeway_holds() -> None:
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
def test_keys_of_unknown_kinds_are_passed_over(unknown: dict[str, Any]) -> None:
    keys = parse_jwks(jwks(unknown, jwk()))

    assert RULES.verify(token(), keys).tenant == "acme"
    with pytest.raises(Unauthenticated, match="not known"):
        RULES.verify(token(headers={"kid": "new"}), keys)


def test_a_long_token_is_not_even_looked_at() -> None:
    with pytest.raises(Unauthenticated, match="over 8192 characters"):
        RULES.verify("a" * 8193, KEYS)


def test_without_a_key_id_there_may_be_one_key_only() -> None:
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
        (b"[]", "no list of keys"),
        (b'{"keys": 5}', "no list of keys"),
        (b'{"keys": []}', "no key for signatures"),
        (b'{"keys": [5]}', r"keys\[0\] is not an object"),
        (b'{"keys": [{"kty": "oct", "k": "aGVsbG8"}]}', r"keys\[0\] is a secret"),
        (b'{"keys": [{"kty": "RSA", "n": "AQAB"}]}', r"keys\[0\] cannot be read"),
        (b'{"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]}', "cannot be read"),
        (jwks(jwk(d="AQAB")), r"keys\[0\] is a secret"),
        (jwks(jwk(kid=5)), "not a string"),
        (jwks(jwk(kty={}), jwk(crv=[]), jwk(use={}), jwk(alg=[])), "no key for signatures"),
        (jwks(jwk(use="enc")), "no key for signatures"),
        (jwks(jwk(), jwk()), r"keys\[1\] has the kid of another"),
        (jwks(jwk(alg="HS256")), "cannot be read|algorithm that is not taken"),
        (jwks(jwk("weak")), "fewer than 2048 bits"),
    ],
    # Keys are other ones in each worker.
    ids=lambda value: "file" if isinstance(value, bytes) else value,
)
def test_a_jwks_file_that_is_wrong_names_the_place(content: bytes, problem: str) -> None:
    with pytest.raises(Misconfigured, match=problem) as refused:
        parse_jwks(content)

    assert "aGVsbG8" not in refused.value.message
