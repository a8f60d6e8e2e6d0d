"""How this gateway authenticates to the nodes of the cluster, and which nodes it trusts.

The files hold secrets.  No text that leaves this module holds anything of them.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from samserve.errors import Misconfigured
from samserve.security import pem
from samserve.settings import CacheSettings
from samserve.system.memfd import as_path
from samserve.system.reloading import ReloadableFile

# Until a password that a node has refused is tried again.
_RETRY_REFUSED_S = 1.0


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Credentials:
    """How to connect; its repr shows nothing.  Without *tls* connections are not encrypted."""

    username: str = ""
    password: str = ""
    tls: ssl.SSLContext | None = None


class NodeCredentials:
    """The credentials for one node: the *newest*, or those that it accepted before.

    Files and cluster cannot learn of a new password at one moment.  As long as the node does not
    know it, the one before is used on.
    """

    def __init__(self, newest: Callable[[], Credentials]) -> None:
        self.newest = newest
        """Returns what to try first on a new connection."""
        self._accepted: Credentials | None = None
        self._refused: Credentials | None = None
        self._retry_at = 0.0

    def is_current(self, credentials: Credentials) -> bool:
        """Return whether a connection that was opened with *credentials* may still be used."""
        newest = self.newest()
        return credentials is (self._accepted if self._refused is newest else newest)

    def retry_due(self) -> bool:
        """Return whether it is time to try again what was refused."""
        return self._refused is self.newest() and time.monotonic() > self._retry_at

    def accept(self, credentials: Credentials) -> None:
        """Record that the node has accepted the newest."""
        self._accepted, self._refused = credentials, None

    def refuse(self, credentials: Credentials) -> Credentials | None:
        """Record that the node does not know it; return what it accepted before, if any."""
        if self._accepted is None or self._accepted is credentials:
            return None
        self._refused, self._retry_at = credentials, time.monotonic() + _RETRY_REFUSED_S
        if self._accepted.tls is not credentials.tls:
            # Only the password is the old one: the trusted CAs are what the files say now.
            self._accepted = replace(self._accepted, tls=credentials.tls)
        return self._accepted


def open_cache_credentials(settings: CacheSettings) -> ReloadableFile[Credentials]:
    """Read the files that the settings name.  Raises `Misconfigured`."""
    named = {
        "password_file": settings.password_file,
        "ca_file": settings.ca_file,
        "cert_file": settings.cert_file,
        "key_file": settings.key_file,
    }
    paths = {name: path for name, path in named.items() if path is not None}

    def parse(*contents: bytes) -> Credentials:
        found = dict(zip(paths, contents, strict=True))
        password = _password(settings, found["password_file"]) if "password_file" in found else ""
        context = _context(settings, found) if settings.tls else None
        return Credentials(settings.username, password, context)

    return ReloadableFile("cache credentials", tuple(paths.values()), parse)


def _password(settings: CacheSettings, content: bytes) -> str:
    password = ""
    with suppress(UnicodeDecodeError):
        password = content.decode().strip()
    if not password:
        raise Misconfigured(f"cache.password_file {settings.password_file}: holds no password")
    return password


def _context(settings: CacheSettings, contents: Mapping[str, bytes]) -> ssl.SSLContext:
    """Make the context that verifies nodes by name, with our own certificate if there is one."""
    if "ca_file" in contents:
        problem = f"cache.ca_file {settings.ca_file}: is not made of certificates in PEM form"
        with _misconfigured_as(problem), as_path(contents["ca_file"]) as ca_file:
            pem.certificates(contents["ca_file"])
            context = ssl.create_default_context(cafile=ca_file)
    else:
        context = ssl.create_default_context()
    if "cert_file" in contents:
        _load_own_certificate(context, settings, contents["cert_file"], contents["key_file"])
    return context


def _load_own_certificate(
    context: ssl.SSLContext, settings: CacheSettings, chain: bytes, private_key: bytes
) -> None:
    certificate = f"cache.cert_file {settings.cert_file}"
    pem.check_pair(certificate, chain, f"cache.key_file {settings.key_file}", private_key)
    with (
        _misconfigured_as(f"{certificate}: cannot be used for TLS, or its key cannot"),
        as_path(chain) as chain_path,
        as_path(private_key) as key_path,
    ):
        context.load_cert_chain(chain_path, key_path)


@contextmanager
def _misconfigured_as(problem: str) -> Iterator[None]:
    """Raise *problem*, without anything of the contents, if they cannot be read."""
    try:
        yield
    except (pem.Unreadable, ssl.SSLError, ValueError):
        raise Misconfigured(problem) from None
