"""Gateways that share a cluster: in separate processes, or in this one, which starts faster."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import grpc
from prometheus_client.parser import text_string_to_metric_families
from samserve.app import Running
from samserve.engines.base import Engine
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from harness.cluster.cluster import Cluster
from tests import sample_images, secret_leaks
from tests.cluster.caches import LONG_TIMEOUTS
from tests.conftest import UNLIMITED, serving, settings_with
from tests.engine_choice import Sections
from tests.metric_values import total
from tests.rpc.errors import read
from tests.support.waiting import until

_SETTINGS = {
    "engine.kind": "fake",
    "server.port": 0,
    "server.admin_port": 0,
    "server.grace_period_s": 5,
    "cache.local.capacity_bytes": 64 << 20,
    "log.level": "info",
    "log.format": "json",
}
# `LONG_TIMEOUTS`, for gateways in separate processes.
LONG_TIMEOUT_OPTIONS = {f"cache__shared__{name}": value for name, value in LONG_TIMEOUTS.items()}
_DIRECT = build_opener(ProxyHandler({}))


@dataclass
class Gateway:
    """A gateway process, and a stub for it."""

    process: asyncio.subprocess.Process
    address: str
    admin: str
    stub: SegmentationServiceStub
    log: list[str] = field(default_factory=list)

    async def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with these labels; 0 if there are none."""
        text = await asyncio.to_thread(lambda: _DIRECT.open(self.admin + "/metrics").read())
        return sum(
            sample.value
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@asynccontextmanager
async def gateway(
    cluster: Cluster | None, *, package: Path | None = None, **changes: object
) -> AsyncIterator[Gateway]:
    """Run a gateway process; in the names of settings, two underscores stand for a dot.

    *package* is a folder that contains another version of samserve.
    """
    settings = dict(_SETTINGS)
    if cluster is not None:
        settings["cache.shared.nodes"] = ",".join(cluster.addresses[:2])
    settings.update({name.replace("__", "."): value for name, value in changes.items()})
    flags = [f"--set={name}={value}" for name, value in settings.items()]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "samserve", "serve", *flags),
        stderr=asyncio.subprocess.PIPE,
        env=None if package is None else {"PYTHONPATH": str(package)},
    )
    log: list[str] = []
    try:
        address, admin = await asyncio.wait_for(_addresses(process, log), 120)
        reading = asyncio.create_task(_read(process, log))
        async with grpc.aio.insecure_channel(address, options=UNLIMITED) as channel:
            yield Gateway(process, address, admin, SegmentationServiceStub(channel), log)
        assert process.returncode is None, "\n".join(log[-20:])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), 60)
        except TimeoutError:
            process.kill()
            await process.wait()
        secret_leaks.check("gateway log", "\n".join(log))
    await reading


@asynccontextmanager
async def gateways(
    cluster: Cluster | None, count: int = 2, **changes: object
) -> AsyncIterator[list[Gateway]]:
    """Run several gateway processes."""
    async with AsyncExitStack() as stack:
        starting = (stack.enter_async_context(gateway(cluster, **changes)) for _ in range(count))
        yield await asyncio.gather(*starting)


@dataclass
class LocalGateway:
    """A gateway in this process, and a stub for it."""

    service: Running
    stub: SegmentationServiceStub

    async def metric(self, name: str, **labels: str) -> float:
        """See `Gateway.metric`."""
        return total(self.service.metrics.registry, name, **labels)


@asynccontextmanager
async def local_gateway(
    cluster: Cluster | None, sections: Sections | None = None, *, engine: Engine | None = None
) -> AsyncIterator[LocalGateway]:
    """Run a gateway in this process, by default with the fake engine."""
    chosen = {"engine": {"kind": "fake"}, **(sections or {})}
    shared = dict(LONG_TIMEOUTS)
    if cluster is not None:
        shared["nodes"] = ",".join(cluster.addresses[:2])
    local = {"capacity_bytes": _SETTINGS["cache.local.capacity_bytes"]}
    cache = chosen.get("cache", {})
    settings = settings_with(
        **{
            **chosen,
            "cache": {"local": local, "shared": {**shared, **cache.get("shared", {})}},
        }
    )
    async with serving(settings, engine=engine) as (service, stub):
        yield LocalGateway(service, stub)


@asynccontextmanager
async def local_gateways(
    cluster: Cluster | None, sections: Sections | None = None, *, count: int = 2
) -> AsyncIterator[list[LocalGateway]]:
    """Run several gateways in this process."""
    async with AsyncExitStack() as stack:
        starting = (local_gateway(cluster, sections) for _ in range(count))
        yield [await stack.enter_async_context(each) for each in starting]


async def _addresses(process: asyncio.subprocess.Process, log: list[str]) -> tuple[str, str]:
    assert process.stderr is not None
    async for line in process.stderr:
        log.append(line.decode().rstrip())
        if '"serving"' in log[-1]:
            api = re.search(r'"address": "([^"]+)"', log[-1])
            admin = re.search(r'"admin": "([^"]+)"', log[-1])
            assert api is not None
            assert admin is not None
            return api[1], admin[1]
    raise AssertionError("the gateway process ended:\n" + "\n".join(log))


async def _read(process: asyncio.subprocess.Process, log: list[str]) -> None:
    assert process.stderr is not None
    async for line in process.stderr:
        log.append(line.decode().rstrip())


async def until_not_found(server: Gateway | LocalGateway, embedding_id: str) -> None:
    """Wait until the gateway returns EMBEDDING_NOT_FOUND for an embedding."""
    request = pb.PredictRequest(embedding_id=embedding_id, prompts=[sample_images.point_prompt()])

    async def not_found() -> bool:
        try:
            await server.stub.Predict(request, timeout=60)
        except grpc.aio.AioRpcError as error:
            failure = read(error)
        else:
            return False
        assert failure.reason == "EMBEDDING_NOT_FOUND"
        return True

    await until(not_found)
