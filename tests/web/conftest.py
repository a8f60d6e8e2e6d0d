"""One Chromium and one server for all tests of the page; each test has a tab of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright
from samserve.app import Running

from tests.examples.browser import launch
from tests.web.page import WebPage, opened
from tests.web.serving import address_of, two_models, web_service


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await launch(playwright)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """A server with the page and two models, without credentials."""
    repository = two_models(tmp_path_factory.mktemp("models"))
    async with web_service(engine={"model_repository": repository}) as service:
        yield service


@pytest_asyncio.fixture(loop_scope="package")
async def page(chromium: Browser, service: Running) -> AsyncIterator[WebPage]:
    """The page, with a session; nothing may go wrong in it."""
    async with opened(chromium, address_of(service)) as page:
        yield page
