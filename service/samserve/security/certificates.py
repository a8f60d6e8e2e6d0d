"""Certificates as they are on the disk, checked before anybody relies on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

from samserve.errors import Misconfigured

# What the library lets out for hostile bytes, found by fuzzing.
_FOREIGN_ERRORS = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)
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
    leaf = _certificates("TLS certificate", chain)[0]
    if _public_key(leaf) != _public_bytes(_private_key(key).public_key()):
        raise Misconfigured("TLS key: is not that of the certificate")
    if client_ca is not None:
        _certificates("client CA", client_ca)
    return ServerCertificate(chain, key, client_ca)


def names_of_peer(auth_context: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """Give the DNS names and URIs of a verified client certificate, or else its CN.

    Addresses of machines and of mailboxes name nobody here: an issuer may hand them out with less
    care.
    """
    found = [name for kind in _NAMES for name in auth_context.get(kind, ())]
    names = found or list(auth_context.get("x509_common_name", ()))
    return tuple(name.decode("utf-8", "replace") for name in names)


def _certificates(what: str, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except _FOREIGN_ERRORS:
        raise Misconfigured(f"{what}: has no certificate in PEM form") from None


def _public_key(certificate: x509.Certificate) -> bytes:
    try:
        return _public_bytes(certificate.public_key())
    except _FOREIGN_ERRORS:
        raise Misconfigured("TLS certificate: is for a key that cannot be read") from None


def _private_key(pem: bytes) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except _FOREIGN_ERRORS:
        raise Misconfigured("TLS key: is not an unencrypted private key in PEM form") from None


def _public_bytes(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
