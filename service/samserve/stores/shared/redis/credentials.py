"""What this gateway shows to the nodes of the cluster, and whom it trusts.

The files hold secrets.  No text that leaves this module holds anything of them.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from samserve.errors import Misconfigured
from samserve.security import pem
from samserve.settings import CacheSettings
from samserve.system.memfd import as_path
from samserve.system.reloading import Watched

# Until a node is asked again whether it knows a password that it has refused.
_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Access:
    """How to connect; its repr tells nothing.  Without *tls* connections are not encrypted."""

    username: str = ""
    password: str = ""
    tls: ssl.SSLContext | None = None


class Entry:
    """With what one node lets us in: the *newest*, or what it took before.

    Files and cluster cannot learn of a new password at one moment.  As long as the node does not
    know it, the one before is used on.
    """

    def __init__(self, newest: Callable[[], Access]) -> None:
        self._newest = newest
        self._accepted: Access | None = None
        self._refused: Access | None = None
        self._again_at = 0.0

    def newest(self) -> Access:
        """Give what is to be tried first on a new connection."""
        return self._newest()

    def holds(self, access: Access) -> bool:
        """Tell whether a connection that was opened with *access* may still be used."""
        newest = self._newest()
        return access is (self._accepted if self._refused is newest else newest)

    def to_be_tried(self) -> bool:
        """Tell whether it is time to offer again what was refused."""
        return self._refused is self._newest() and time.monotonic() > self._again_at

    def accept(self, access: Access) -> None:
        """Note that the node has let us in with the newest."""
        self._accepted, self._refused = access, None

    def refuse(self, access: Access) -> Access | None:
        """Note that the node does not know the password, and give what it took before, if any."""
        if self._accepted is None or self._accepted is access:
            return None
        self._refused, self._again_at = access, time.monotonic() + _AGAIN_S
        if self._accepted.tls is not access.tls:
            # Only the password is of yesterday: whom we trust is what the files say now.
            self._accepted = replace(self._accepted, tls=access.tls)
        return self._accepted


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
    context = _context(paths, contents) if settings.tls else None
    return Access(settings.username, password, context)


def _password(path: Path, content: bytes) -> str:
    try:
        password = content.decode().strip()
    except UnicodeDecodeError:
        password = ""
    if not password:
        raise Misconfigured(f"cache.password_file {path}: holds no password")
    return password


def _context(paths: Mapping[str, Path], contents: Mapping[str, bytes]) -> ssl.SSLContext:
    """Make what verifies the nodes by name, with our own certificate if there is one."""
    if "ca_file" in contents:
        problem = f"cache.ca_file {paths['ca_file']}: is not made of certificates in PEM form"
        with _said_as(problem), as_path(contents["ca_file"]) as ca_file:
            pem.certificates(contents["ca_file"])
            context = ssl.create_default_context(cafile=ca_file)
    else:
        context = ssl.create_default_context()
    if "cert_file" in contents:
        _show(context, paths, contents["cert_file"], contents["key_file"])
    return context


def _show(
    context: ssl.SSLContext, paths: Mapping[str, Path], chain: bytes, private_key: bytes
) -> None:
    certificate = f"cache.cert_file {paths['cert_file']}"
    key = f"cache.key_file {paths['key_file']}"
    with _said_as(f"{certificate}: is not made of certificates in PEM form"):
        of_certificate = pem.key_of_certificate(pem.certificates(chain)[0])
    with _said_as(f"{key}: is no private key in PEM form, or it is encrypted"):
        of_key = pem.key_of_private_key(private_key)
    if of_certificate != of_key:
        raise Misconfigured(f"{key}: is not the key of {certificate}")
    with (
        _said_as(f"{certificate}: cannot be used for TLS, or its key cannot"),
        as_path(chain) as chain_path,
        as_path(private_key) as key_path,
    ):
        context.load_cert_chain(chain_path, key_path)


@contextmanager
def _said_as(problem: str) -> Iterator[None]:
    """Say *problem*, and nothing of the contents, if they cannot be read."""
    try:
        yield
    except (pem.Unreadable, ssl.SSLError, ValueError):
        raise Misconfigured(problem) from None
