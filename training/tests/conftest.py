"""These tests require torch: without the ``[training]`` extra they are not collected.

They compute in one thread.  With several, each operation busy-waits for the slowest thread: on a
loaded machine, seconds become minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    import torch  # noqa: PLC0415 - it may not be installed

    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(previous)
