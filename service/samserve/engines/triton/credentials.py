"""What this gateway shows to Triton, and whom it trusts: the contents of some files.

The files hold secrets.  No text that leaves this module holds anything of a file but its path and
the number of a line, and no foreign exception is chained to ours.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from cryptography import x509

from samserve.errors import EngineUnavailable
from samserve.security import pem
from samserve.settings import TritonSettings
from samserve.system.file_permissions import warn_if_world_writable

Signature: TypeAlias = tuple[tuple[int, ...] | None, ...]
"""What tells that files have been replaced: of each its identity, size and times, or None."""

_MOST_BYTES = 1 << 20
_ATTEMPTS = 5
# Where systems keep the certificates that they trust; gRPC itself would take a list of its own.
_SYSTEM_CAS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# Metadata as gRPC takes it; names of its own begin with "grpc-", binary values are named "-bin".
_HEADER_NAME = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]+")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Credentials:
    """How to connect: PEM texts, and the metadata of every request.  Its repr tells nothing."""

    tls: bool = False
    roots: bytes | None = None
    certificates: bytes | None = None
    key: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


PLAIN = Credentials()


class CredentialFiles:
    """The files that the settings name; the methods block, and may be called in any thread."""

    def __init__(self, settings: TritonSettings) -> None:
        self._tls = settings.tls
        self._ca = settings.ca_file
        if settings.tls and settings.ca_file is None:
            self._ca = _system_ca_file()
        self._ca_is_ours = settings.ca_file is not None
        self._certificate, self._key = settings.cert_file, settings.key_file
        self._headers = settings.headers_file

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that are read."""
        files = (self._ca, self._certificate, self._key, self._headers)
        return tuple(path for path in files if path is not None)

    def signature(self) -> Signature:
        """Tell one state of the files from another, at little cost; follows symbolic links."""
        return tuple(_look_at(path) for path in self.paths)

    def read(self) -> tuple[Signature, Credentials]:
        """Read and verify all files in one state, and give its signature too.

        Raises `EngineUnavailable`, which names the file, if there is something wrong with one.
        """
        for _ in range(_ATTEMPTS):
            before = self.signature()
            contents = {path: _content(path) for path in self.paths}
            # A key of today with the certificate of yesterday would be no pair.
            if self.signature() == before:
                parsed = self._parsed(contents)
                warn_if_world_writable(self.paths)
                return before, parsed
        raise EngineUnavailable(f"{self.paths[0]} and what belongs to it change all the time")

    def _parsed(self, contents: Mapping[Path, bytes]) -> Credentials:
        roots = contents[self._ca] if self._ca is not None else None
        if self._ca is not None and self._ca_is_ours:
            _certificates("triton.ca_file", self._ca, contents[self._ca])
        certificates = key = None
        if self._certificate is not None and self._key is not None:
            certificates, key = contents[self._certificate], contents[self._key]
            first = _certificates("triton.cert_file", self._certificate, certificates)[0]
            if _key_of_certificate(first) != _public_key(self._key, key):
                raise EngineUnavailable(
                    f"triton.cert_file {self._certificate} and triton.key_file {self._key} "
                    "do not belong together"
                )
        headers: Mapping[str, str] = {}
        if self._headers is not None:
            headers = _parsed_headers(self._headers, contents[self._headers])
        return Credentials(self._tls, roots, certificates, key, headers)


def _system_ca_file() -> Path | None:
    """Find what the system trusts; None leaves it to gRPC, which brings Mozilla's list along."""
    candidates = (ssl.get_default_verify_paths().cafile, *_SYSTEM_CAS)
    return next((Path(name) for name in candidates if name and Path(name).is_file()), None)


def _look_at(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (
        *(status.st_dev, status.st_ino, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns),
    )


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise EngineUnavailable(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise EngineUnavailable(f"{path} is larger than {_MOST_BYTES} bytes")
    return content


def _certificates(setting: str, path: Path, content: bytes) -> list[x509.Certificate]:
    try:
        return pem.certificates(content)
    except pem.Unreadable:
        raise EngineUnavailable(
            f"{setting} {path} is not made of certificates in PEM form"
        ) from None


def _public_key(path: Path, content: bytes) -> bytes:
    try:
        return pem.key_of_private_key(content)
    except pem.Unreadable:
        raise EngineUnavailable(
            f"triton.key_file {path} is no private key in PEM form, or it is encrypted"
        ) from None


def _key_of_certificate(certificate: x509.Certificate) -> bytes | None:
    try:
        return pem.key_of_certificate(certificate)
    except pem.Unreadable:
        return None


def _parsed_headers(path: Path, content: bytes) -> dict[str, str]:
    """Read lines ``name: value``; errors tell no name either, which may be a misplaced secret."""
    headers: dict[str, str] = {}
    for number, line in enumerate(content.decode("ascii", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        name, _, value = (part.strip() for part in line.partition(":"))
        place = f"triton.headers_file {path}, line {number}"
        if not _HEADER_NAME.fullmatch(name) or ":" not in line:
            raise EngineUnavailable(
                f"{place}: not `name: value` with a name of lower-case letters, digits and -_. "
                "that neither begins with grpc- nor ends in -bin"
            )
        if not _HEADER_VALUE.fullmatch(value):
            raise EngineUnavailable(f"{place}: the value is empty or not printable ASCII")
        if name in headers:
            raise EngineUnavailable(f"{place}: this name was there before")
        headers[name] = value
    return headers
