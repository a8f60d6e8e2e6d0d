"""The real server over a real channel, and which tests may run at the same time.

The engine is what `tests.chosen` says, unless a test brings its own or asks for the default model.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from samserve.app import Running, running
from samserve.engines.base import Engine
from samserve.settings import LogSettings, Settings, load
from samserve.stores.base import EmbeddingStore
from samserve.telemetry import logs
from samserve.v1 import samserve_pb2_grpc

from tests import chosen
from tests.support.examples import register_profiles

register_profiles()
pytest_plugins = ["tests.secrecy", "tests.triton.crashes", "pytester"]

GROUPS = {
    # One tritonserver and one cluster at a time.
    "servers": (
        "tests/engines",
        "tests/triton",
        "tests/cluster",
        "tests/cli/test_cache",
        "tests/chart/test_running",
        "tests/chart/test_rolling",
        "tests/monitoring/test_live",
        "tests/monitoring/test_observe",
        "tests/monitoring/test_harness",
        "tests/export/test_on_triton",
    ),
    # One large model in memory at a time.
    "models": (
        "tests/export",
        "tests/segmentation/automask/test_parity",
        "training/tests/test_shipped",
        "training/tests/test_train",
    ),
}
"""Tests that share what one machine has room for once, by the start of their path."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", choices=chosen.ENGINES, help="run all tests on this engine only")


def pytest_configure(config: pytest.Config) -> None:
    chosen.kind = config.getoption("--engine") or chosen.kind


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests of behaviour on every engine; what is slow already runs on one."""
    config, definition = metafunc.config, metafunc.definition
    if config.getoption("--engine") or definition.get_closest_marker("slow"):
        return
    engines = chosen.engines_of(_path_of(definition))
    if engines:
        marked = [
            pytest.param(name, marks=[pytest.mark.slow] * slow) for name, slow in engines.items()
        ]
        metafunc.parametrize("_engine", marked, indirect=True, ids=list(engines), scope="module")


@pytest.fixture(autouse=True, scope="module")
def _engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Choose the engine of a test."""
    before = chosen.kind
    chosen.kind = getattr(request, "param", before)
    yield
    chosen.kind = before


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test the group whose tests run in one worker, one after another.

    Groups that take longest come first: what is short fills the gaps at the end.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group_of(item)))
    items.sort(key=lambda item: _start_of(_group_of(item)))


def _group_of(item: pytest.Item) -> str:
    """Name the group of a test: what it needs that may run once at a time, or its file."""
    path = _path_of(item)
    callspec = getattr(item, "callspec", None)
    engine = callspec.params.get("_engine") if callspec else None
    if (engine or item.config.getoption("--engine") or "").startswith("triton"):
        return "servers"
    for group, prefixes in GROUPS.items():
        if path.startswith(prefixes):
            return group
    return path


def _path_of(item: pytest.Item) -> str:
    return item.path.relative_to(item.config.rootpath).as_posix()


def _start_of(group: str) -> int:
    names = list(GROUPS)
    return names.index(group) if group in names else len(names)


def pytest_collection_finish() -> None:
    """Spare the garbage collector thousands of tests and what they import.

    Looking through them took it a third of a second, in which no server of a test answered.
    """
    gc.collect()
    gc.freeze()


FREE_PORTS = {"port": 0, "admin_port": 0, "grace_s": 5.0}
UNLIMITED = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Channels of one process would otherwise share a connection.
    ("grpc.use_local_subchannel_pool", 1),
]


def settings_with(**sections: dict[str, Any]) -> Settings:
    """Build settings on free ports; each argument is a section."""
    server = {**FREE_PORTS, **sections.pop("server", {})}
    return load({"server": server, **_merged(chosen.drawing(), sections)})


def _merged(sections: chosen.Sections, changes: chosen.Sections) -> chosen.Sections:
    """Change single settings of sections."""
    return {
        name: {**sections.get(name, {}), **changes.get(name, {})}
        for name in sections.keys() | changes.keys()
    }


@asynccontextmanager
async def stub_of(address: str) -> AsyncIterator[samserve_pb2_grpc.SegmentationServiceStub]:
    """Connect to a service."""
    async with grpc.aio.insecure_channel(address, options=UNLIMITED) as channel:
        yield samserve_pb2_grpc.SegmentationServiceStub(channel)


@asynccontextmanager
async def serving(
    settings: Settings | None = None,
    *,
    engine: Engine | None = None,
    store: EmbeddingStore | None = None,
) -> AsyncIterator[tuple[Running, samserve_pb2_grpc.SegmentationServiceStub]]:
    """Run the service with the chosen engine, or the given one, and connect to it."""
    async with (
        running(settings or settings_with(), engine=engine, store=store) as service,
        stub_of(service.address) as stub,
    ):
        yield service, stub


@asynccontextmanager
async def serving_models(
    **sections: dict[str, Any],
) -> AsyncIterator[tuple[Running, samserve_pb2_grpc.SegmentationServiceStub]]:
    """Run the service with the default model and connect to it."""
    async with (
        running(settings_with(**_merged(chosen.default_model(), sections))) as service,
        stub_of(service.address) as stub,
    ):
        yield service, stub


@pytest.fixture(autouse=True)
def _plain_logs() -> None:
    """Log as a server does, whatever a command configured in a test before."""
    logs.configure(LogSettings())


@pytest.fixture
async def service() -> AsyncIterator[tuple[Running, samserve_pb2_grpc.SegmentationServiceStub]]:
    """A running service with the chosen engine, and a stub for it."""
    async with serving() as pair:
        yield pair


@pytest.fixture
async def stub(
    service: tuple[Running, samserve_pb2_grpc.SegmentationServiceStub],
) -> samserve_pb2_grpc.SegmentationServiceStub:
    """A stub for a running service with the chosen engine."""
    return service[1]
