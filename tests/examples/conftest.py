"""The clients of `examples/`: Chromium is started once for each file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.examples import browser as chromium
from tests.examples.browser import BrowserClient
from tests.examples.node import NodeClient


@pytest.fixture
def node() -> NodeClient:
    return NodeClient()


@pytest.fixture(scope="session")
def web_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built pages."""
    folder = tmp_path_factory.mktemp("pages")
    chromium.build(folder)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(web_pages: Path) -> AsyncIterator[BrowserClient]:
    async with chromium.running(web_pages) as client:
        yield client
