"""What this gateway shows to the nodes of the cluster, and whom it trusts.

The files hold secrets.  No text that leaves this module holds anything of them.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from samserve import pem
from samserve.errors import Misconfigured
from samserve.in_memory import as_path
from samserve.settings import CacheSettings
from samserve.watched import Watched


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Access:
    """How to connect; its repr tells nothing.  Without *tls* connections are not encrypted."""

    username: str = ""
    password: str = ""
    tls: ssl.SSLContext | None = None


def open_access(settings: CacheSettings) -> Watched[Access]:
    """Read the files that the settings name.  Raises `Misconfigured`."""
    named = {
        "password_file": settings.password_file,
        "ca_file": settings.ca_file,
        "cert_file": settings.cert_file,
        "key_file": settings.key_file,
    }
    files = {name: path for name, path in named.items() if path is not None}

    def parse(*contents: bytes) -> Access:
        return _access(settings, files, dict(zip(files, contents, strict=True)))

    return Watched("cache credentials", tuple(files.values()), parse)


def _access(
    settings: CacheSettings, paths: Mapping[str, Path], contents: Mapping[str, bytes]
) -> Access:
    password = ""
    if "password_file" in contents:
        password = _password(paths["password_file"], contents["password_file"])
    return Access(settings.username, password, _context(contents) if settings.tls else None)


def _password(path: Path, content: bytes) -> str:
    try:
        password = content.decode().strip()
    except UnicodeDecodeError:
        password = ""
    if not password:
        raise Misconfigured(f"cache.password_file {path}: holds no password")
    return password


def _context(contents: Mapping[str, bytes]) -> ssl.SSLContext:
    """Make what verifies the nodes by name, with our own certificate if there is one."""
    try:
        if "ca_file" in contents:
            pem.certificates(contents["ca_file"])
        if "cert_file" in contents:
            _check_pair(contents["cert_file"], contents["key_file"])
    except pem.Unreadable:
        raise Misconfigured("cache: a certificate or key is not in PEM form") from None
    with ExitStack() as stack:
        paths = {name: stack.enter_context(as_path(content)) for name, content in contents.items()}
        try:
            context = ssl.create_default_context(cafile=paths.get("ca_file"))
            if "cert_file" in paths:
                context.load_cert_chain(paths["cert_file"], paths["key_file"])
        except (ssl.SSLError, ValueError):
            raise Misconfigured("cache: a certificate or key cannot be used for TLS") from None
    return context


def _check_pair(chain: bytes, key: bytes) -> None:
    certificate = pem.certificates(chain)[0]
    if pem.key_of_certificate(certificate) != pem.key_of_private_key(key):
        raise Misconfigured("cache.key_file: is not the key of the certificate")
