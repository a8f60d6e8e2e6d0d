"""The real server over a real channel, and the groups of tests that share a worker.

The engine is that of `tests.engine_choice`, unless a test has its own or uses the default model.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from samserve.app import Running, running
from samserve.cache.base import EmbeddingCache
from samserve.engines.base import Engine
from samserve.settings import LogSettings, Settings, load
from samserve.telemetry import logs
from samserve.v1 import samserve_pb2_grpc

from tests import engine_choice
from tests.support.examples import register_profiles

register_profiles()
pytest_plugins = ["tests.secret_leaks", "tests.triton.crashes", "pytester"]

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
    # Small models that take seconds to make, once.
    "families": ("tests/families",),
    # One Chromium, and one server with the page.
    "web": (
        "tests/web/test_accessibility",
        "tests/web/test_browser_decoding",
        "tests/web/test_clicks",
        "tests/web/test_downloads",
        "tests/web/test_everything",
        "tests/web/test_fluency",
        "tests/web/test_foreign_origin",
        "tests/web/test_hovering",
        "tests/web/test_images",
        "tests/web/test_sessions",
        "tests/web/test_viewport",
    ),
    # The wheels are built once.
    "wheels": ("tests/packaging/test_client_package", "tests/packaging/test_web_page"),
    # The build of the page writes into its folder.
    "examples": (
        "tests/examples/test_browser",
        "tests/examples/test_clients",
        "tests/examples/test_node",
        "tests/examples/test_javascript",
    ),
}
"""Tests that share a resource, most of which one machine has once, by the start of their path."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine", choices=engine_choice.ENGINES, help="run all tests on this engine only"
    )


def pytest_configure(config: pytest.Config) -> None:
    engine_choice.kind = config.getoption("--engine") or engine_choice.kind


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests of behaviour on every engine; slow tests run on one."""
    config, definition = metafunc.config, metafunc.definition
    if config.getoption("--engine") or definition.get_closest_marker("slow"):
        return
    engines = engine_choice.engines_of(_path_of(definition))
    if engines:
        marked = [
            pytest.param(name, marks=[pytest.mark.slow] * slow) for name, slow in engines.items()
        ]
        metafunc.parametrize("_engine", marked, indirect=True, ids=list(engines), scope="module")


@pytest.fixture(autouse=True, scope="module")
def _engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Select the engine of a test."""
    before = engine_choice.kind
    engine_choice.kind = getattr(request, "param", before)
    yield
    engine_choice.kind = before


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Assign every test to a group, whose tests run in one worker, one after another.

    The longest groups run first: short ones fill the gaps at the end.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group_of(item)))
    items.sort(key=lambda item: _position_of(_group_of(item)))


def _group_of(item: pytest.Item) -> str:
    """Return the group of a test: the resource that it needs exclusively, or its file."""
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


def _position_of(group: str) -> int:
    names = list(GROUPS)
    return names.index(group) if group in names else len(names)


def pytest_collection_finish() -> None:
    """Exclude thousands of tests and their imports from garbage collection.

    A collection took a third of a second, during which no server of a test responded.
    """
    gc.collect()
    gc.freeze()


FREE_PORTS = {"port": 0, "admin_port": 0, "grace_period_s": 5.0}
UNLIMITED = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Otherwise, channels of one process would share a connection.
    ("grpc.use_local_subchannel_pool", 1),
]


def settings_with(**sections: dict[str, Any]) -> Settings:
    """Return settings with free ports; each argument is a section."""
    server = {**FREE_PORTS, **sections.pop("server", {})}
    return load({"server": server, **_merged(engine_choice.drawing_settings(), sections)})


def _merged(
    sections: engine_choice.Sections, changes: engine_choice.Sections
) -> engine_choice.Sections:
    """Return *sections* with single settings replaced by those of *changes*."""
    return {
        name: {**sections.get(name, {}), **changes.get(name, {})}
        for name in sections.keys() | changes.keys()
    }


@asynccontextmanager
async def stub_of(address: str) -> AsyncIterator[samserve_pb2_grpc.SegmentationServiceStub]:
    """Connect to a service and yield a stub."""
    async with grpc.aio.insecure_channel(address, options=UNLIMITED) as channel:
        yield samserve_pb2_grpc.SegmentationServiceStub(channel)


@asynccontextmanager
async def serving(
    settings: Settings | None = None,
    *,
    engine: Engine | None = None,
    cache: EmbeddingCache | None = None,
) -> AsyncIterator[tuple[Running, samserve_pb2_grpc.SegmentationServiceStub]]:
    """Run the service with the current engine, or the given one, and connect to it."""
    async with (
        running(settings or settings_with(), engine=engine, cache=cache) as service,
        stub_of(service.address) as stub,
    ):
        yield service, stub


@asynccontextmanager
async def serving_models(
    **sections: dict[str, Any],
) -> AsyncIterator[tuple[Running, samserve_pb2_grpc.SegmentationServiceStub]]:
    """Run the service with the default model and connect to it."""
    async with (
        running(
            settings_with(**_merged(engine_choice.default_model_settings(), sections))
        ) as service,
        stub_of(service.address) as stub,
    ):
        yield service, stub


@pytest.fixture(autouse=True, scope="session")
def _no_models_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Serve only the default model of the package, even if this user has pulled others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(autouse=True)
def _default_logs() -> None:
    """Reset logging, which a command in an earlier test may have configured."""
    logs.configure(LogSettings())


@pytest.fixture
async def service() -> AsyncIterator[tuple[Running, samserve_pb2_grpc.SegmentationServiceStub]]:
    """A running service with the current engine, and a stub."""
    async with serving() as pair:
        yield pair


@pytest.fixture
async def stub(
    service: tuple[Running, samserve_pb2_grpc.SegmentationServiceStub],
) -> samserve_pb2_grpc.SegmentationServiceStub:
    """A stub for a running service with the current engine."""
    return service[1]
