"""Triton servers that tests share.

A test may kill or pause one, and tritonserver may crash: it is running again for the next test.
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
from tests import engine_choice
from tests.engines.drawing import Hold, write_drawing_pair
from tests.engines.full_size import write_models


@dataclass(frozen=True)
class Holding:
    """A server of the drawing pair, and control over its held runs."""

    server: TritonServer
    hold: Hold


def drawing() -> TritonServer:
    """Return the server of the drawing pair."""
    return engine_choice.triton_server(engine_choice.drawing_repository())


def default() -> TritonServer:
    """Return the server of the default model."""
    return engine_choice.triton_server(engine_choice.default_repository())


@cache
def full_size_repository() -> Path:
    """Return a repository with a model of each family, of the published tensor sizes."""
    folder = tempfile.TemporaryDirectory(prefix="samserve-tests-")
    atexit.register(folder.cleanup)
    write_models(Path(folder.name))
    return Path(folder.name)


def full_size() -> TritonServer:
    """Return the server of `full_size_repository`."""
    return engine_choice.triton_server(full_size_repository())


@pytest.fixture
def holding() -> Iterator[Holding]:
    """The drawing pair, with two instances of each network, whose runs can be held."""
    shared = _holding()
    shared.hold.release()
    shared.server.ensure_running()
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
