"""Certificates and private keys in PEM form, with one error for all problems.

`InvalidPem` has no text and no cause: the data may be a secret.
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

# Exceptions of the library for malformed input, found by fuzzing.
_FOREIGN_ERRORS = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


class InvalidPem(Exception):
    """The data is not valid PEM of the expected kind."""


def certificates(data: bytes) -> list[x509.Certificate]:
    """Parse one or more certificates.  Raises `InvalidPem`."""
    with _translated_errors():
        return x509.load_pem_x509_certificates(data)


def first_certificate(data: bytes) -> tuple[bytes, str]:
    """Return the first certificate (PEM), and a name that it is valid for, "" if it has none.

    Raises `InvalidPem`.
    """
    with _translated_errors():
        certificate = x509.load_pem_x509_certificates(data)[0]
        return certificate.public_bytes(Encoding.PEM), _name_of(certificate)


def _name_of(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        # Without alternative names, gRPC checks the common name.
        common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        found = [str(each.value) for each in common]
    else:
        addresses = names.get_values_for_type(x509.IPAddress)
        found = [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]
    # A wildcard certificate is valid for this name.
    return found[0].replace("*", "any", 1) if found else ""


def key_of_certificate(certificate: x509.Certificate) -> bytes:
    """Return the public key of a certificate, as DER.  Raises `InvalidPem`."""
    with _translated_errors():
        return _der(certificate.public_key())


def key_of_private_key(data: bytes) -> bytes:
    """Return the public key of an unencrypted private key, as DER.  Raises `InvalidPem`."""
    with _translated_errors():
        return _der(load_pem_private_key(data, password=None).public_key())


def check_certificates(name: str, data: bytes) -> None:
    """Check that the file *name* contains certificates only.  Raises `Misconfigured`."""
    _parse(f"{name}: must contain PEM certificates", certificates, data)


def check_pair(certificate: str, chain: bytes, key: str, private_key: bytes) -> None:
    """Check that a private key matches the first certificate of a chain.

    *certificate* and *key* name the files.  Raises `Misconfigured`.
    """
    check_certificates(certificate, chain)
    of_key = _parse(
        f"{key}: must be an unencrypted PEM private key", key_of_private_key, private_key
    )
    if of_key != _key_of_first(chain):
        raise Misconfigured(f"{key}: does not match {certificate}")


def _key_of_first(chain: bytes) -> bytes | None:
    try:
        return key_of_certificate(certificates(chain)[0])
    except InvalidPem:
        return None


def _parse(problem: str, parse: Callable[[bytes], T], data: bytes) -> T:
    try:
        return parse(data)
    except InvalidPem:
        raise Misconfigured(problem) from None


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except _FOREIGN_ERRORS:
        raise InvalidPem from None


def _der(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
