"""The real server over a real channel; the engine is the fake one unless a test asks for models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from samserve import logs
from samserve.app import Running, running
from samserve.engines.base import Engine
from samserve.engines.fake import FakeEngine
from samserve.settings import LogSettings, Settings, load
from samserve.stores.base import EmbeddingStore
from samserve.v1 import samserve_pb2_grpc

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
    return load({"server": server, **sections})


@asynccontextmanager
async def serving(
    settings: Settings | None = None,
    *,
    engine: Engine | None = None,
    store: EmbeddingStore | None = None,
) -> AsyncIterator[tuple[Running, samserve_pb2_grpc.SegmentationServiceStub]]:
    """Run the service with the fake engine, or the given one, and connect to it."""
    chosen = engine or FakeEngine()
    async with (
        running(settings or settings_with(), engine=chosen, store=store) as service,
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        yield service, samserve_pb2_grpc.SegmentationServiceStub(channel)


@asynccontextmanager
async def serving_models(
    **sections: dict[str, Any],
) -> AsyncIterator[tuple[Running, samserve_pb2_grpc.SegmentationServiceStub]]:
    """Run the service with the default model and connect to it."""
    async with (
        running(settings_with(**sections)) as service,
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        yield service, samserve_pb2_grpc.SegmentationServiceStub(channel)


@pytest.fixture(autouse=True)
def _plain_logs() -> None:
    """Log as a server does, whatever a command configured in a test before."""
    logs.configure(LogSettings())


@pytest.fixture
async def service() -> AsyncIterator[tuple[Running, samserve_pb2_grpc.SegmentationServiceStub]]:
    """A running service with the fake engine, and a stub for it."""
    async with serving() as pair:
        yield pair


@pytest.fixture
async def stub(
    service: tuple[Running, samserve_pb2_grpc.SegmentationServiceStub],
) -> samserve_pb2_grpc.SegmentationServiceStub:
    """A stub for a running service with the fake engine."""
    return service[1]
