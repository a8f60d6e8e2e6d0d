"""Certificates and private keys in PEM form, with one error for whatever is wrong with them.

`Unreadable` has no text and no cause: what is being read may be a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from samserve.errors import Misconfigured

T = TypeVar("T")

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


def check_certificates(name: str, data: bytes) -> None:
    """Check that a file, which *name* names, has certificates only.  Raises `Misconfigured`."""
    _checked(f"{name}: is not made of certificates in PEM form", certificates, data)


def check_pair(certificate: str, chain: bytes, key: str, private_key: bytes) -> None:
    """Check that a private key is that of the first certificate of a chain.

    *certificate* and *key* name the files.  Raises `Misconfigured`.
    """
    check_certificates(certificate, chain)
    of_key = _checked(
        f"{key}: is no private key in PEM form, or it is encrypted", key_of_private_key, private_key
    )
    if of_key != _key_of_first(chain):
        raise Misconfigured(f"{key}: is not the key of {certificate}")


def _key_of_first(chain: bytes) -> bytes | None:
    try:
        return key_of_certificate(certificates(chain)[0])
    except Unreadable:
        return None


def _checked(problem: str, read: Callable[[bytes], T], data: bytes) -> T:
    try:
        return read(data)
    except Unreadable:
        raise Misconfigured(problem) from None


@contextmanager
def _one_error() -> Iterator[None]:
    try:
        yield
    except _FOREIGN_ERRORS:
        raise Unreadable from None


def _der(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
