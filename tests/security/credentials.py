"""Certificates, keys and tokens for tests; all secrets are registered."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import jwt
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from samserve.security import keys

from tests.secret_leaks import secret, secret_file

ISSUER, AUDIENCE = "https://issuer.test", "samserve-tests"


@dataclass(frozen=True)
class Pem:
    """The files of a certificate and its key."""

    cert: Path
    key: Path

    def settings(self, **more: Any) -> dict[str, Any]:
        """Return the settings section `tls` of a server with this certificate."""
        return {"cert_file": self.cert, "key_file": self.key, "reload_interval_s": 0.05, **more}


def write_pem(folder: Path, issued: trustme.LeafCert, name: str = "server") -> Pem:
    """Write a certificate chain and its key to files."""
    folder.mkdir(parents=True, exist_ok=True)
    key = secret_file(folder / f"{name}.key")
    cert = folder / f"{name}.crt"
    secret(issued.private_key_pem.bytes().decode())
    key.write_bytes(issued.private_key_pem.bytes())
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return Pem(cert, key)


def mount(folder: Path, content: Path) -> Pem:
    """Switch the links in *folder* to the files in *content* atomically, as Kubernetes does."""
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f"..data_{time.monotonic_ns()}"
    staged.symlink_to(content, target_is_directory=True)
    staged.replace(folder / "..data")
    for name in ("server.crt", "server.key"):
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(Path("..data") / name)
    return Pem(folder / "server.crt", folder / "server.key")


def ca_file(folder: Path, authority: trustme.CA, name: str = "ca.crt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(authority.cert_pem.bytes())
    return path


def channel_credentials(
    trusted: trustme.CA, client: trustme.LeafCert | None = None
) -> grpc.ChannelCredentials:
    """Return credentials that trust a CA and present a client certificate, if one is given."""
    if client is None:
        return grpc.ssl_channel_credentials(trusted.cert_pem.bytes())
    secret(client.private_key_pem.bytes().decode())
    chain = b"".join(blob.bytes() for blob in client.cert_chain_pems)
    return grpc.ssl_channel_credentials(
        trusted.cert_pem.bytes(), client.private_key_pem.bytes(), chain
    )


class KeyFile:
    """A key file on disk; returns the keys in clear text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text = ""
        self._write()

    def add(self, tenant: str, *roles: str, **more: Any) -> str:
        """Create a key and store its hash."""
        key = secret(keys.new_key())
        # The secret part alone must not appear in logs either.
        secret(key.split("_", 2)[2])
        self._text += keys.entry_for(key, tenant, roles, **more).to_toml() + "\n"
        self._write()
        return key

    def clear(self) -> None:
        self._text = ""
        self._write()

    def _write(self) -> None:
        temporary = self.path.with_suffix(".new")
        temporary.write_text(self._text)
        os.replace(temporary, self.path)


def bearer(credential: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call with a key or token."""
    return (("authorization", f"Bearer {credential}"),)


@cache
def signing_key(kind: str = "ec") -> Any:
    """Return a private key; *kind* is `ec`, `rsa` or `weak` (RSA with 1024 bits)."""
    if kind == "ec":
        key: Any = ec.generate_private_key(ec.SECP256R1())
    else:
        key = rsa.generate_private_key(65537, 1024 if kind == "weak" else 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    secret(pem.decode())
    return key


def algorithm(kind: str) -> str:
    return "ES256" if kind == "ec" else "RS256"


def jwk(kind: str = "ec", kid: str = "one", **changes: Any) -> dict[str, Any]:
    """Return a public key as a JWKS entry."""
    public = signing_key(kind).public_key()
    converter = jwt.get_algorithm_by_name(algorithm(kind))
    return {**json.loads(converter.to_jwk(public)), "kid": kid, **changes}


def jwks(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()


def token(
    tenant: Any = "acme",
    roles: Any = ("embed", "predict"),
    *,
    kind: str = "ec",
    headers: dict[str, Any] | None = None,
    **claims: Any,
) -> str:
    """Return a signed token; claims of None are omitted."""
    payload = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": int(time.time()) + 600,
        "sub": "some-user",
        "tenant": tenant,
        "roles": roles,
        **claims,
    }
    payload = {name: value for name, value in payload.items() if value is not None}
    signed = jwt.encode(
        payload, signing_key(kind), algorithm(kind), headers={"kid": "one", **(headers or {})}
    )
    secret(signed.rsplit(".", 1)[1])
    return secret(signed)
