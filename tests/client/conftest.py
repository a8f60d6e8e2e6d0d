"""A client of the real server with the fake engine."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest
from samserve.app import Running
from samserve.client import Client
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

PIXELS = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)


@pytest.fixture
def target(service: tuple[Running, SegmentationServiceStub]) -> str:
    return service[0].address


@pytest.fixture
async def client(target: str) -> AsyncIterator[Client]:
    async with Client(target) as opened:
        yield opened
