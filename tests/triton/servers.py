"""Tritons that tests share, where they do not harm each other.

A test may kill or pause one, and tritonserver may crash: the next test has it running again.
"""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from harness.triton.server import TritonServer
from tests import chosen
from tests.engines.drawing import Hold, write_drawing_pair


@dataclass(frozen=True)
class Holding:
    """A server of the pair that draws, and what it holds."""

    server: TritonServer
    hold: Hold


def drawing() -> TritonServer:
    """Return the server of the pair that draws."""
    return chosen.triton_server(chosen.drawing_repository())


def default() -> TritonServer:
    """Return the server of the default model."""
    return chosen.triton_server(chosen.default_repository())


@pytest.fixture
def holding() -> Iterator[Holding]:
    """The pair that draws, with two instances of each network, which can hold some of its runs."""
    shared = _holding()
    shared.hold.release()
    shared.server.revive()
    yield shared
    shared.hold.release()


@cache
def _holding() -> Holding:
    folder = tempfile.TemporaryDirectory(prefix="samserve-tests-")
    atexit.register(folder.cleanup)
    models = Path(folder.name) / "models"
    write_drawing_pair(models)
    hold = Hold(Path(folder.name) / "held")
    hold.apply_to(models)
    config = models / "fake_encoder" / "config.pbtxt"
    text = config.read_text()
    changed = text.replace("instance_group [ { count: 1 } ]", "instance_group [ { count: 2 } ]")
    assert changed != text
    config.write_text(changed)
    server = TritonServer(models, log=Path(folder.name) / "log")
    atexit.register(server.kill)
    return Holding(server, hold)
