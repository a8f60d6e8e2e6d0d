"""A Triton that listens on IPv6."""

from __future__ import annotations

from pathlib import Path

import pytest
from samserve.system.addresses import join

from harness.triton.server import TritonServer
from tests import engine_choice
from tests.engines.triton.services import opened

HOST = "::1"


@pytest.mark.slow
@pytest.mark.parametrize("shared_memory", ["required", "off"])
async def test_gateway_connects_to_triton_over_ipv6(shared_memory: str, tmp_path: Path) -> None:
    server = TritonServer(
        model_repository=engine_choice.drawing_repository(),
        log=tmp_path / "log",
        # tritonserver appends the port without adding brackets.
        extra_args=[f"--grpc-address=[{HOST}]"],
    )
    with server:
        url = join(HOST, server.grpc_port)
        async with opened(url, shared_memory=shared_memory) as (engine, _):
            assert await engine.ready()
            assert list(engine.models) == ["fake"]
