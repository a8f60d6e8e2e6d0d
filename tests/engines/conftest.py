"""What tests on a real Triton need."""

from __future__ import annotations

import pytest

from harness.triton.server import TritonServer
from tests.triton.servers import holding

__all__ = ["holding"]


@pytest.fixture(autouse=True)
def _revived(request: pytest.FixtureRequest) -> None:
    """Have the servers that tests of a module share running, whatever the last test did.

    Fixtures of a larger scope are there before this one.
    """
    for value in request.node.funcargs.values():
        if isinstance(value, TritonServer):
            value.revive()
