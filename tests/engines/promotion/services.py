"""Gateways on a repository, with or without Triton, and commands for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from samserve.app import Running, running
from samserve.cli.main import main
from samserve.settings import load
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from harness.triton.server import TritonServer
from tests.conftest import FREE_PORTS, UNLIMITED

Services = Sequence[tuple[Running, SegmentationServiceStub]]
EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")


@asynccontextmanager
async def served(
    kind: str,
    repository: Path,
    gateways: int = 1,
    *,
    control: Sequence[str] = EXPLICIT,
    max_model_bytes: int = 0,
    **others: Any,
) -> AsyncIterator[Services]:
    """Run gateways on a repository, and a Triton if *kind* is ``triton``."""
    settings: dict[str, Any] = {
        "engine": {"kind": kind, "max_model_bytes": max_model_bytes},
        "server": FREE_PORTS,
        **others,
    }
    async with AsyncExitStack() as stack:
        if kind == "triton":
            log = repository.parent / "log"
            triton = TritonServer(repository, log=log, extra_args=control)
            await asyncio.to_thread(stack.enter_context, triton)
            settings["triton"] = {"url": triton.grpc_address, "shared_memory": "required"}
        elif kind == "onnx":
            settings["engine"] |= {"model_repository": repository, "threads": 1}
        settings["cache"] = {"local": {"capacity_bytes": 64 << 20}}
        opened = []
        for _ in range(gateways):
            service = await stack.enter_async_context(running(load(settings)))
            channel = grpc.aio.insecure_channel(service.address, options=UNLIMITED)
            await stack.enter_async_context(channel)
            opened.append((service, SegmentationServiceStub(channel)))
        yield opened


async def command(services: Services, repository: Path, *arguments: str) -> int:
    """Run a command of `samserve models` for all gateways."""
    servers = [part for service, _ in services for part in ("--server", service.address)]
    full = ["models", *arguments, "--repository", str(repository), *servers]
    return await asyncio.to_thread(main, full)
