"""Client credentials for Triton, and its trusted CAs, read from files.

The files contain secrets.  Texts that leave this module contain nothing of a file but its path and
a line number, and no foreign exception is chained to ours.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from samserve.errors import Misconfigured
from samserve.security import pem
from samserve.settings import TritonSettings
from samserve.system.reloading import ReloadableFile

# The trust stores of operating systems; gRPC itself would use its bundled list.
_SYSTEM_CAS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# Valid gRPC metadata; the prefix "grpc-" is reserved, and names of binary values end in "-bin".
_HEADER_NAME = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]+")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Credentials:
    """PEM texts, and the metadata of every request.  The repr contains no secrets."""

    tls: bool = False
    roots: bytes | None = None
    certificates: bytes | None = None
    key: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


PLAIN = Credentials()


def open_credentials(settings: TritonSettings) -> ReloadableFile[Credentials]:
    """Read the files of the settings.  Raises `Misconfigured`, which names the file."""
    files = {
        "ca_file": settings.ca_file or (_system_ca_file() if settings.tls else None),
        "cert_file": settings.cert_file,
        "key_file": settings.key_file,
        "headers_file": settings.headers_file,
    }
    paths = {name: path for name, path in files.items() if path is not None}

    def parse(*contents: bytes) -> Credentials:
        return _parsed(settings, dict(zip(paths, contents, strict=True)))

    return ReloadableFile("Triton credentials", tuple(paths.values()), parse)


def _parsed(settings: TritonSettings, contents: Mapping[str, bytes]) -> Credentials:
    roots, certificates, key, headers = map(
        contents.get, ("ca_file", "cert_file", "key_file", "headers_file")
    )
    if settings.ca_file is not None and roots is not None:
        pem.check_certificates(f"triton.ca_file {settings.ca_file}", roots)
    if certificates is not None and key is not None:
        certificate, private_key = settings.cert_file, settings.key_file
        pem.check_pair(
            f"triton.cert_file {certificate}", certificates, f"triton.key_file {private_key}", key
        )
    parsed = {} if headers is None else _parsed_headers(settings.headers_file, headers)
    return Credentials(settings.tls, roots, certificates, key, parsed)


def _system_ca_file() -> Path | None:
    """Return the system's CA file; None lets gRPC use its bundled list of Mozilla."""
    candidates = (ssl.get_default_verify_paths().cafile, *_SYSTEM_CAS)
    return next((Path(name) for name in candidates if name and Path(name).is_file()), None)


def _parsed_headers(path: Path | None, content: bytes) -> dict[str, str]:
    """Parse lines ``name: value``; errors omit the name as well, since it may be a secret."""
    headers: dict[str, str] = {}
    for number, line in enumerate(content.decode("ascii", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        name, _, value = (part.strip() for part in line.partition(":"))
        location = f"triton.headers_file {path}, line {number}"
        if not _HEADER_NAME.fullmatch(name) or ":" not in line:
            raise Misconfigured(
                f"{location}: not `name: value` with a name of lower-case letters, digits and -_. "
                "that neither begins with grpc- nor ends in -bin"
            )
        if not _HEADER_VALUE.fullmatch(value):
            raise Misconfigured(f"{location}: the value is empty or not printable ASCII")
        if name in headers:
            raise Misconfigured(f"{location}: duplicate name")
        headers[name] = value
    return headers
