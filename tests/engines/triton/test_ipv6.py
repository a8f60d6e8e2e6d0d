"""A Triton that listens on IPv6."""

from __future__ import annotations

from pathlib import Path

import pytest
from samserve.system.addresses import join

from harness.triton.server import TritonServer
from tests import chosen
from tests.engines.triton.opening import opened

# Which tritonserver joins with its port as it is.

HOST = "::1"


@pytest.mark.slow
@pytest.mark.parametrize("shared_memory", ["required", "off"])
async def test_a_triton_on_ipv6_is_used(shared_memory: str, tmp_path: Path) -> None:
    server = TritonServer(
        model_repository=chosen.drawing_repository(),
        log=tmp_path / "log",
        extra_args=[f"--grpc-address=[{HOST}]"],
    )
    with server:
        url = join(HOST, server.grpc_port)
        async with opened(url, shared_memory=shared_memory) as (engine, _):
            assert await engine.ready()
            assert list(engine.models) == ["fake"]
