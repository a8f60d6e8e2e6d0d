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


def first_certificate(data: bytes) -> tuple[bytes, str]:
    """Give the first certificate (PEM), and a name that it is for, "" if it has none.

    Raises `Unreadable`.
    """
    with _one_error():
        certificate = x509.load_pem_x509_certificates(data)[0]
        return certificate.public_bytes(Encoding.PEM), _name_of(certificate)


def _name_of(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        # Where there are no other names, gRPC looks at the common one.
        common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        found = [str(each.value) for each in common]
    else:
        addresses = names.get_values_for_type(x509.IPAddress)
        found = [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]
    # A certificate for all names of a domain is for this one, too.
    return found[0].replace("*", "any", 1) if found else ""


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
