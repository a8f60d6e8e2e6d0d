"""Certificates and private keys in PEM form, with one error for whatever is wrong with them.

The error has no text and no cause: what is being read may be a secret.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

# What the library lets out for hostile bytes, found by fuzzing.
_FOREIGN_ERRORS = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


class Unreadable(Exception):
    """The bytes are not what they should be."""


def certificates(data: bytes) -> list[x509.Certificate]:
    """Read one certificate or more.  Raises `Unreadable`."""
    with _one_error():
        return x509.load_pem_x509_certificates(data)


def key_of_certificate(certificate: x509.Certificate) -> bytes:
    """Give the public key that a certificate is for, as DER.  Raises `Unreadable`."""
    with _one_error():
        return _der(certificate.public_key())


def key_of_private_key(data: bytes) -> bytes:
    """Give the public key of a private key that is not encrypted, as DER.  Raises `Unreadable`."""
    with _one_error():
        return _der(load_pem_private_key(data, password=None).public_key())


@contextmanager
def _one_error() -> Iterator[None]:
    try:
        yield
    except _FOREIGN_ERRORS:
        raise Unreadable from None


def _der(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
