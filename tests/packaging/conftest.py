"""The wheels of this repository, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.environments import pip

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheels of the client and the server; `make web/dist/index.html` has built the page."""
    folder = tmp_path_factory.mktemp("wheels")
    sources = (ROOT / "clients" / "python", ROOT)
    pip("wheel", "--no-deps", "--wheel-dir", folder, *sources, REQUIRE_WEB_PAGE="1")
    (client,) = folder.glob("samserve_client-*.whl")
    (server,) = folder.glob("samserve-*.whl")
    return client, server
