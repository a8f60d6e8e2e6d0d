"""One tritonserver for all tests that do not stop or pause it."""

from __future__ import annotations

import pytest

from harness.triton.server import TritonServer
from tests.triton import servers
from tests.triton.servers import holding

__all__ = ["holding"]


@pytest.fixture
def triton() -> TritonServer:
    """The committed model repository, served unchanged."""
    return servers.default()
