"""Pages of other origins, in a real browser: they can neither read the listener nor use it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect
from samserve.app import Running

from tests.examples.browser import launch, pages
from tests.metric_values import total
from tests.secret_leaks import secret
from tests.web.page import opened
from tests.web.serving import address_of, token_of

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="package")]

SCRIPT = (Path(__file__).parent / "foreign_page.js").read_text()
NAMES = ("127.0.0.1", "localhost", "evil.test")
"""Of the same host but another port, of another site, and a name that resolves to loopback."""


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a web server of someone else."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "index.html").write_text("<!doctype html><title>foreign</title><body></body>")
    with pages(folder) as origin:
        yield urlsplit(origin).port or 0


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def resolving() -> AsyncIterator[Browser]:
    """A browser for which evil.test is a name of this host."""
    async with async_playwright() as playwright:
        browser = await launch(
            playwright,
            "--host-resolver-rules=MAP evil.test 127.0.0.1",
            # A protection of this browser itself, of pages that are not of this host.
            "--disable-features=LocalNetworkAccessChecks",
        )
        yield browser
        await browser.close()


def begun(service: Running) -> float:
    """Count the calls of all methods, over both listeners."""
    return total(service.metrics.registry, "grpc_server_started_total")


def refused(service: Running, reason: str) -> float:
    return total(service.metrics.registry, "samserve_http_refused_total", reason=reason)


def assert_still_valid(service: Running, token: str) -> None:
    """Check that a token has begun no session."""
    assert service.page is not None
    assert service.page.sessions is not None
    secret(service.page.sessions.exchange(token))


@pytest.mark.parametrize("name", NAMES)
async def test_page_of_another_origin_reads_nothing_and_begins_no_call(
    service: Running, resolving: Browser, foreign: int, name: str
) -> None:
    token, calls = token_of(service), begun(service)
    before = refused(service, "ORIGIN_NOT_ALLOWED")
    context = await resolving.new_context()
    page = await context.new_page()
    await page.goto(f"http://{name}:{foreign}/")

    results = await page.evaluate(SCRIPT, service.http_address)

    await context.close()
    assert {name: text for name, text in results.items() if text and "refused" not in text} == {}
    assert begun(service) == calls
    assert refused(service, "ORIGIN_NOT_ALLOWED") > before
    assert_still_valid(service, token)


async def test_name_that_resolves_to_the_listener_is_not_its_own(
    service: Running, resolving: Browser
) -> None:
    """An attacker lets a name resolve to his host, and then to this one."""
    token, calls = token_of(service), begun(service)
    before = refused(service, "HOST_NOT_ALLOWED")
    origin = f"http://evil.test:{urlsplit(service.http_address).port}"
    page = await resolving.new_page()
    # From his host; all that follows reaches the listener.
    await page.route(f"{origin}/foreign", lambda route: route.fulfill(body="<body></body>"))
    await page.goto(f"{origin}/foreign")

    results = await page.evaluate(SCRIPT, origin)

    await page.close()
    # Its origin is the same, so it may read the answers, but each is a refusal.
    read = [text for text in results.values() if text.startswith("read")]
    assert len(read) > 5, results
    assert [text for text in read if "HOST_NOT_ALLOWED" not in text] == []
    assert begun(service) == calls
    assert refused(service, "HOST_NOT_ALLOWED") > before
    assert_still_valid(service, token)


async def test_window_that_another_page_opens_is_out_of_its_reach(
    service: Running, resolving: Browser, foreign: int
) -> None:
    context = await resolving.new_context()
    page = await context.new_page()
    await page.goto(f"http://localhost:{foreign}/")
    async with page.expect_popup() as waiting:
        # Kept by the foreign page.
        await page.evaluate("(url) => { window.victim = window.open(url) }", service.http_address)
    popup: Page = await waiting.value
    # A link leads to the page, which has no session and states how to get one.
    await expect(popup.get_by_role("alert")).to_contain_text("the server printed")

    reached = await page.evaluate(
        """() => {
             try { return window.victim.document.body.textContent } catch (error) { return "" }
           }"""
    )
    closed = await page.evaluate("() => window.victim.closed")
    opener = await popup.evaluate("() => window.opener")

    await context.close()
    assert (reached, closed, opener) == ("", True, None)


async def test_page_may_share_memory_between_threads(chromium: Browser, service: Running) -> None:
    """Only a page that no other one can reach may do so."""
    async with opened(chromium, address_of(service)) as page:
        assert await page.page.evaluate("() => window.crossOriginIsolated")
