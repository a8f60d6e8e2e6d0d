"""The web page: what the listener serves, and who may call it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from samserve.http.endpoints import Endpoint
from samserve.http.web.endpoints import SESSION, PageEndpoint, SessionEndpoint
from samserve.http.web.files import INDEX, PageFiles, read_page
from samserve.security.authenticator import Authenticator
from samserve.security.sessions import SessionAuthenticator, Sessions
from samserve.settings import Settings
from samserve.system.addresses import is_loopback

DOCUMENTS = frozenset(("/", f"/{INDEX}"))
"""The paths that a link on a page of another origin may lead to."""


@dataclass(frozen=True, slots=True)
class WebPage:
    """The files of the page, and its sessions if callers need no other credential."""

    files: PageFiles
    sessions: Sessions | None

    def paths(self) -> Mapping[str, Endpoint]:
        """Return the endpoints by path."""
        return {
            **dict.fromkeys(self.files, PageEndpoint(self.files)),
            SESSION: SessionEndpoint(self.sessions),
        }

    def show(self, url: str, write: Callable[[str], None]) -> None:
        """Write the address of the page at *url*: a new one whenever its token has been used."""
        sessions = self.sessions
        if sessions is None:
            write(f"Web page: {url}/")
            return
        sessions.announce = lambda token: write(
            f"Web page, for another browser: {url}/#token={token}"
        )
        write(f"Web page: {url}/#token={sessions.issue()}")

    def authenticator(self, of_api: Authenticator) -> Authenticator | SessionAuthenticator:
        """Return what authenticates the callers over HTTP; *of_api* does so over gRPC."""
        return of_api if self.sessions is None else SessionAuthenticator(of_api, self.sessions)


def open_web_page(settings: Settings) -> WebPage | None:
    """Read the page, None if it is not served.  Raises `Misconfigured`."""
    http = settings.http
    if not (http.enabled and http.web_page):
        return None
    # On loopback, decompression takes longer than the transfer.
    files = read_page(http.web_page_folder, compress=not is_loopback(http.host))
    if files["/"].status != 200:
        structlog.get_logger("samserve.http").warning("the web page is not part of this package")
    return WebPage(files, None if settings.has_credentials else Sessions())
