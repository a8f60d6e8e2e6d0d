"""A tritonserver of another user, as with gateway and Triton in separate containers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.triton.environment import find_home
from harness.triton.server import TritonServer

USER = 65534


def _missing() -> str:
    if os.getuid() != 0:
        return "only root can run a server as another user"
    try:
        folders = find_home().server.parents
    except HarnessError as error:
        return str(error)
    reachable = all(folder.stat().st_mode & 0o001 for folder in folders)
    return "" if reachable else "the other user has no access to tritonserver"


required = pytest.mark.skipif(bool(_missing()), reason=_missing() or "can run")
"""Marks tests that run a server as another user."""


@contextmanager
def serving(groups: Sequence[int]) -> Iterator[TritonServer]:
    """Run a server as `USER`, without models, whose Python files that user could not read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "models").mkdir()
        with TritonServer(
            folder / "models",
            log=folder / "log",
            extra_args=["--model-control-mode=explicit"],
            user=USER,
            groups=groups,
        ) as server:
            yield server
