"""The real server over a real channel.

The engine is the fake one, or what ``--engine`` names, unless a test brings its own or asks for the
default model.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from samserve import logs
from samserve.app import Running, running
from samserve.engines.base import Engine
from samserve.settings import LogSettings, Settings, load
from samserve.stores.base import EmbeddingStore
from samserve.v1 import samserve_pb2_grpc

from tests import chosen

pytest_plugins = ["tests.secrecy", "pytester"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", choices=chosen.ENGINES, default="fake", help=chosen.__doc__)


def pytest_configure(config: pytest.Config) -> None:
    chosen.kind = config.getoption("--engine")


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
async def serving(
    settings: Settings | None = None,
    *,
    engine: Engine | None = None,
    store: EmbeddingStore | None = None,
) -> AsyncIterator[tuple[Running, samserve_pb2_grpc.SegmentationServiceStub]]:
    """Run the service with the chosen engine, or the given one, and connect to it."""
    async with (
        running(settings or settings_with(), engine=engine, store=store) as service,
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        yield service, samserve_pb2_grpc.SegmentationServiceStub(channel)


@asynccontextmanager
async def serving_models(
    **sections: dict[str, Any],
) -> AsyncIterator[tuple[Running, samserve_pb2_grpc.SegmentationServiceStub]]:
    """Run the service with the default model and connect to it."""
    async with (
        running(settings_with(**_merged(chosen.default_model(), sections))) as service,
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        yield service, samserve_pb2_grpc.SegmentationServiceStub(channel)


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
