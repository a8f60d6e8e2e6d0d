"""Gateways that share a cluster: in processes of their own, or in this one, which takes no time."""

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
from tests import pictures, secrecy
from tests.chosen import Sections
from tests.cluster.stores import PATIENT
from tests.conftest import UNLIMITED, serving, settings_with
from tests.rpc.errors import read
from tests.samples import total
from tests.support.waiting import until

_SETTINGS = {
    "engine.kind": "fake",
    "server.port": 0,
    "server.admin_port": 0,
    "server.grace_s": 5,
    "store.capacity_bytes": 64 << 20,
    "log.level": "info",
    "log.format": "json",
}
# For processes, as `PATIENT` for stores.
PATIENTLY = {f"cache__{name}": value for name, value in PATIENT.items()}
_DIRECT = build_opener(ProxyHandler({}))


@dataclass
class Gateway:
    """A server process, and a stub for it."""

    process: asyncio.subprocess.Process
    address: str
    admin: str
    stub: SegmentationServiceStub
    log: list[str] = field(default_factory=list)

    async def metric(self, name: str, **labels: str) -> float:
        """Add up the samples that have these labels; 0 if there are none yet."""
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
    """Run a gateway; settings have two underscores for the dot.

    *package* is the folder that holds another version of samserve.
    """
    settings = dict(_SETTINGS)
    if cluster is not None:
        settings["cache.nodes"] = ",".join(cluster.addresses[:2])
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
        secrecy.check("gateway log", "\n".join(log))
    await reading


@asynccontextmanager
async def gateways(
    cluster: Cluster | None, count: int = 2, **changes: object
) -> AsyncIterator[list[Gateway]]:
    """Run several at once."""
    async with AsyncExitStack() as stack:
        starting = (stack.enter_async_context(gateway(cluster, **changes)) for _ in range(count))
        yield await asyncio.gather(*starting)


@dataclass
class LocalGateway:
    """A server in this process, and a stub for it."""

    service: Running
    stub: SegmentationServiceStub

    async def metric(self, name: str, **labels: str) -> float:
        """Do as `Gateway.metric` does."""
        return total(self.service.metrics.registry, name, **labels)


@asynccontextmanager
async def local_gateway(
    cluster: Cluster | None, sections: Sections | None = None, *, engine: Engine | None = None
) -> AsyncIterator[LocalGateway]:
    """Run a gateway in this process: with the fake engine, unless another is named or given."""
    given = {"engine": {"kind": "fake"}, **(sections or {})}
    cache = dict(PATIENT)
    if cluster is not None:
        cache["nodes"] = ",".join(cluster.addresses[:2])
    settings = settings_with(
        **{
            "store": {"capacity_bytes": _SETTINGS["store.capacity_bytes"]},
            **given,
            "cache": {**cache, **given.get("cache", {})},
        }
    )
    async with serving(settings, engine=engine) as (service, stub):
        yield LocalGateway(service, stub)


@asynccontextmanager
async def local_gateways(
    cluster: Cluster | None, sections: Sections | None = None, *, count: int = 2
) -> AsyncIterator[list[LocalGateway]]:
    """Run several at once."""
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
    raise AssertionError("the gateway has ended:\n" + "\n".join(log))


async def _read(process: asyncio.subprocess.Process, log: list[str]) -> None:
    assert process.stderr is not None
    async for line in process.stderr:
        log.append(line.decode().rstrip())


async def until_gone(server: Gateway | LocalGateway, embedding_id: str) -> None:
    """Wait until the server does not find it."""
    request = pb.PredictRequest(embedding_id=embedding_id, prompts=[pictures.click()])

    async def gone() -> bool:
        try:
            await server.stub.Predict(request, timeout=60)
        except grpc.aio.AioRpcError as error:
            failure = read(error)
        else:
            return False
        assert failure.reason == "EMBEDDING_NOT_FOUND"
        return True

    await until(gone)
