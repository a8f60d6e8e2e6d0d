"""Fixtures for tests on a real Triton."""

from __future__ import annotations

import pytest

from harness.triton.server import TritonServer
from tests.triton.servers import holding

__all__ = ["holding"]


@pytest.fixture(autouse=True)
def _running_servers(request: pytest.FixtureRequest) -> None:
    """Make sure that the servers which tests of a module share are running.

    Fixtures of a larger scope are created before this one.
    """
    for value in request.node.funcargs.values():
        if isinstance(value, TritonServer):
            value.ensure_running()
