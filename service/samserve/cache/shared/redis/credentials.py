"""Credentials of this gateway for the nodes of the cluster, and the CAs that it trusts.

The files contain secrets.  No text that leaves this module contains any of their content.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from samserve.errors import Misconfigured
from samserve.security import pem
from samserve.settings import SharedCacheSettings
from samserve.system.memfd import as_path
from samserve.system.reloading import ReloadableFile

# Until a password that a node has rejected is tried again.
_RETRY_REJECTED_S = 1.0


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Credentials:
    """Username, password and TLS context; the repr hides them.  Without *tls*, no encryption."""

    username: str = ""
    password: str = ""
    tls: ssl.SSLContext | None = None


class NodeCredentials:
    """The credentials for one node: the *newest*, or the previous ones that it accepted.

    Files and cluster cannot change a password at the same moment.  As long as the node rejects the
    new one, the previous one stays in use.
    """

    def __init__(self, newest: Callable[[], Credentials]) -> None:
        self.newest = newest
        """Returns the credentials to try first on a new connection."""
        self._accepted: Credentials | None = None
        self._rejected: Credentials | None = None
        self._retry_at = 0.0

    def is_current(self, credentials: Credentials) -> bool:
        """Return whether a connection that was opened with *credentials* may still be used."""
        newest = self.newest()
        return credentials is (self._accepted if self._rejected is newest else newest)

    def retry_due(self) -> bool:
        """Return whether it is time to try rejected credentials again."""
        return self._rejected is self.newest() and time.monotonic() > self._retry_at

    def accept(self, credentials: Credentials) -> None:
        """Record that the node has accepted the newest credentials."""
        self._accepted, self._rejected = credentials, None

    def reject(self, credentials: Credentials) -> Credentials | None:
        """Record that the node rejected them; return those that it accepted before, if any."""
        if self._accepted is None or self._accepted is credentials:
            return None
        self._rejected, self._retry_at = credentials, time.monotonic() + _RETRY_REJECTED_S
        if self._accepted.tls is not credentials.tls:
            # Only the password is the previous one: the trusted CAs are those of the files now.
            self._accepted = replace(self._accepted, tls=credentials.tls)
        return self._accepted


def open_cache_credentials(settings: SharedCacheSettings) -> ReloadableFile[Credentials]:
    """Read the files in the settings.  Raises `Misconfigured`."""
    named = {
        "password_file": settings.password_file,
        "ca_file": settings.ca_file,
        "cert_file": settings.cert_file,
        "key_file": settings.key_file,
    }
    paths = {name: path for name, path in named.items() if path is not None}

    def parse(*contents: bytes) -> Credentials:
        by_name = dict(zip(paths, contents, strict=True))
        password = ""
        if "password_file" in by_name:
            password = _password(settings, by_name["password_file"])
        context = _context(settings, by_name) if settings.tls else None
        return Credentials(settings.username, password, context)

    return ReloadableFile("cache credentials", tuple(paths.values()), parse)


def _password(settings: SharedCacheSettings, content: bytes) -> str:
    password = ""
    with suppress(UnicodeDecodeError):
        password = content.decode().strip()
    if not password:
        raise Misconfigured(
            f"cache.shared.password_file {settings.password_file}: contains no password"
        )
    return password


def _context(settings: SharedCacheSettings, contents: Mapping[str, bytes]) -> ssl.SSLContext:
    """Create a TLS context that verifies nodes by name, with a client certificate if configured."""
    if "ca_file" in contents:
        problem = f"cache.shared.ca_file {settings.ca_file}: must contain PEM certificates"
        with _misconfigured_as(problem), as_path(contents["ca_file"]) as ca_file:
            pem.certificates(contents["ca_file"])
            context = ssl.create_default_context(cafile=ca_file)
    else:
        context = ssl.create_default_context()
    if "cert_file" in contents:
        _load_client_certificate(context, settings, contents["cert_file"], contents["key_file"])
    return context


def _load_client_certificate(
    context: ssl.SSLContext, settings: SharedCacheSettings, chain: bytes, private_key: bytes
) -> None:
    certificate = f"cache.shared.cert_file {settings.cert_file}"
    pem.check_pair(certificate, chain, f"cache.shared.key_file {settings.key_file}", private_key)
    with (
        _misconfigured_as(f"{certificate}: it or its key cannot be used for TLS"),
        as_path(chain) as chain_path,
        as_path(private_key) as key_path,
    ):
        context.load_cert_chain(chain_path, key_path)


@contextmanager
def _misconfigured_as(problem: str) -> Iterator[None]:
    """Raise `Misconfigured` with *problem*, and nothing of the content, for content errors."""
    try:
        yield
    except (pem.InvalidPem, ssl.SSLError, ValueError):
        raise Misconfigured(problem) from None
