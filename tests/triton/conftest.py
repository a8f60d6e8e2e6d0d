"""One tritonserver for all tests that do not harm it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.triton.environment import ROOT
from harness.triton.server import TritonServer


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The committed model repository, served as it is."""
    log = tmp_path_factory.mktemp("triton") / "server.log"
    with TritonServer(ROOT / "model_repository", log=log) as server:
        yield server
