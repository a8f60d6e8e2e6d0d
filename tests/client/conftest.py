"""A client of the real server with the fake engine."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator

import numpy as np
import pytest
from samserve.app import Running
from samserve.client import Client
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests.conftest import serving

PIXELS = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)


@pytest.fixture
def target(service: tuple[Running, SegmentationServiceStub]) -> str:
    return service[0].address


@pytest.fixture
async def client(target: str) -> AsyncIterator[Client]:
    async with Client(target) as opened:
        yield opened


async def run_scenarios(kind: str, **environment: str) -> dict[str, dict[str, str]]:
    """Run scenarios of `tests.client.forking` in another process, with a server in this one."""
    async with serving() as (service, _):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.client.forking", kind, service.address),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},  # noqa: TID251 - that of another process
        )
        written, _ = await process.communicate()
    assert process.returncode == 0
    return dict(json.loads(line) for line in written.splitlines())
