"""The client and the page of `examples/browser`, in Chromium."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from playwright.async_api import Browser, Page, Playwright, async_playwright
from samserve.app import Running

from tests.examples.programs import EXAMPLES, FOLDER, program, run_npm

_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def build(folder: Path) -> None:
    """Build the page as its README says, and the bundle of the tests; write both to *folder*."""
    run_npm("run", "--silent", "build")
    browser = EXAMPLES / "browser"
    bundle = (str(FOLDER / "browser_scenarios.js"), "--bundle", f"--outdir={folder / 'dist'}")
    run_npm("exec", "--offline", "--", "esbuild", *bundle, "--log-level=warning")
    (folder / "dist" / "page.js").write_bytes((browser / "dist" / "page.js").read_bytes())
    (folder / "index.html").write_bytes((browser / "index.html").read_bytes())
    (folder / "scenarios.html").write_text('<script src="dist/browser_scenarios.js"></script>')


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - a name of the base class
        pass


@contextmanager
def pages(folder: Path) -> Iterator[str]:
    """Serve the files of a folder; yield the origin."""
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class BrowserClient:
    """Runs scenarios in Chromium, each on another page."""

    def __init__(self, playwright: Playwright, browser: Browser, origin: str) -> None:
        self._playwright = playwright
        self._browser = browser
        self.origin = origin
        self.sections: dict[str, dict[str, Any]] = {
            "http": {"enabled": True, "port": 0, "allowed_origins": origin}
        }
        """The settings that a server needs for this client."""

    def target(self, service: Running, *, tls: bool = False) -> str:
        """Return the URL of a server for this client; with *tls* it names the host."""
        return service.http_address.replace("127.0.0.1", "localhost" if tls else "127.0.0.1")

    @asynccontextmanager
    async def scenario(
        self, name: str, target: str, options: dict[str, Any] | None = None, **args: Any
    ) -> AsyncIterator[Any]:
        """Run a scenario and yield its result; the page is open while the block runs."""
        options = dict(options or {})
        async with self.page(certificate=options.pop("certificate", "")) as page:
            yield await self.run(page, name, target, options, **args)

    async def run(
        self, page: Page, name: str, target: str, options: dict[str, Any] | None = None, **args: Any
    ) -> Any:
        """Run a scenario on an open page."""
        await page.goto(f"{self.origin}/scenarios.html")
        request = {"name": name, "target": target, "options": options or {}, "args": args}
        return await page.evaluate("(request) => runScenario(request)", request)

    @asynccontextmanager
    async def page(self, *, certificate: str = "") -> AsyncIterator[Page]:
        """Open a page; *certificate* is one that no CA of Chromium has issued, and is trusted."""
        if not certificate:
            page = await self._browser.new_page()
            yield page
            await page.close()
            return
        trusted = f"--ignore-certificate-errors-spki-list={_key_digest(certificate)}"
        browser = await launch(self._playwright, trusted)
        try:
            yield await browser.new_page()
        finally:
            await browser.close()


def _key_digest(certificate: str) -> str:
    key = x509.load_pem_x509_certificate(certificate.encode()).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


async def launch(playwright: Playwright, *arguments: str) -> Browser:
    """Start Chromium."""
    return await playwright.chromium.launch(
        executable_path=program("chromium"), args=[*_ARGUMENTS, *arguments]
    )


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[BrowserClient]:
    """Serve the built pages and start Chromium."""
    with pages(folder) as origin:
        async with async_playwright() as playwright:
            browser = await launch(playwright)
            yield BrowserClient(playwright, browser, origin)
            await browser.close()
