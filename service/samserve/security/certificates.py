"""Certificates as they are on the disk, checked before anybody relies on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from samserve.security import pem

_NAMES = ("peer_dns", "peer_uri")


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """PEM bytes: the chain, its private key, and the CAs of clients, None if none are asked for."""

    chain: bytes
    key: bytes
    client_ca: bytes | None

    def __repr__(self) -> str:
        """Say nothing: a key must not get into a log by way of a traceback."""
        return "ServerCertificate(...)"


def parse_server_certificate(
    chain: bytes, key: bytes, client_ca: bytes | None = None
) -> ServerCertificate:
    """Check that the key is that of the first certificate, and that all can be read.

    While files are being exchanged one by one, a key may meet the certificate of another; that is
    `Misconfigured` too, and the next look will find them in order.
    """
    pem.check_pair("TLS certificate", chain, "TLS key", key)
    if client_ca is not None:
        pem.check_certificates("client CA", client_ca)
    return ServerCertificate(chain, key, client_ca)


def names_of_peer(auth_context: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """Give the DNS names and URIs of a verified client certificate, or else its CN.

    Addresses of machines and of mailboxes name nobody here: an issuer may hand them out with less
    care.
    """
    found = [name for kind in _NAMES for name in auth_context.get(kind, ())]
    names = found or list(auth_context.get("x509_common_name", ()))
    return tuple(name.decode("utf-8", "replace") for name in names)
