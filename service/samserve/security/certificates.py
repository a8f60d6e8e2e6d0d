"""The server's certificate, validated when it is read, and the names in client certificates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from samserve.security import pem

_NAMES = ("peer_dns", "peer_uri")


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """PEM bytes: the chain, its private key, and the client CAs, None without mutual TLS."""

    chain: bytes
    key: bytes
    client_ca: bytes | None

    def __repr__(self) -> str:
        """Return no content: a key must not get into a log with a traceback."""
        return "ServerCertificate(...)"


def parse_server_certificate(
    chain: bytes, key: bytes, client_ca: bytes | None = None
) -> ServerCertificate:
    """Check that all files are readable, and that the key matches the first certificate.

    Raises `Misconfigured`.  That also happens while files are replaced one by one, when the key
    does not match the certificate yet; the next check for changed files reads them again.
    """
    pem.check_pair("TLS certificate", chain, "TLS key", key)
    if client_ca is not None:
        pem.check_certificates("client CA", client_ca)
    return ServerCertificate(chain, key, client_ca)


def peer_names(auth_context: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """Return the DNS names and URIs of a verified client certificate, or else its CN.

    IP and mail addresses are ignored: an issuer may verify them less strictly.
    """
    found = [name for kind in _NAMES for name in auth_context.get(kind, ())]
    names = found or list(auth_context.get("x509_common_name", ()))
    return tuple(name.decode("utf-8", "replace") for name in names)


def names_of_certificate(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what `peer_names` returns, of a certificate as `ssl.SSLSocket.getpeercert` has it."""
    alternatives = certificate.get("subjectAltName", ())
    found = tuple(name for kind, name in alternatives if kind in ("DNS", "URI"))
    subject = (pair for part in certificate.get("subject", ()) for pair in part)
    return found or tuple(name for kind, name in subject if kind == "commonName")
