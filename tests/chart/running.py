"""Rendered pods that run, and clients that work meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trustme
from samserve.client import Client, Prompt
from samserve.client.errors import SamserveClientError

from harness.pod.pod import Pod
from harness.pod.volumes import World
from tests import pictures
from tests.chart.rendered import Object, deployment, gateways, of_kind, only
from tests.secrecy import secret

PICTURES = [pictures.file_of(pictures.noise(48, 64, seed=n)) for n in range(12)]


def pair(issued: trustme.LeafCert) -> dict[str, bytes]:
    """What a Secret of kubernetes.io/tls has."""
    key = secret(issued.private_key_pem.bytes().decode()).encode()
    return {"tls.crt": b"".join(blob.bytes() for blob in issued.cert_chain_pems), "tls.key": key}


Secrets = Mapping[str, Mapping[str, bytes]]


def world_of(
    objects: list[Object],
    services: Mapping[str, str] | None = None,
    secrets: Secrets | None = None,
) -> World:
    """What the rendered pods refer to."""
    maps = {each["metadata"]["name"]: each for each in of_kind(objects, "ConfigMap")}
    return World(config_maps=maps, services=services or {}, secrets=secrets or {})


def replica_of(
    objects: list[Object],
    component: str = "gateway",
    services: Mapping[str, str] | None = None,
    secrets: Secrets | None = None,
    host: str = "127.0.0.1",
) -> Pod:
    """One of the pods that a Deployment would make, at an address of loopback."""
    spec: dict[str, Any] = deployment(objects, component)["spec"]["template"]["spec"]
    return Pod(spec, world_of(objects, services, secrets), host=host)


async def helm_test(objects: list[Object], address: str, secrets: Secrets | None = None) -> str:
    """Run the pod of `helm test` against the Service, which is at *address*."""
    test = only(objects, "Pod")
    name = gateways(objects)["metadata"]["name"]
    async with Pod(test["spec"], world_of(objects, {f"{name}:50051": address}, secrets)) as pod:
        return await pod.completed()


@dataclass
class Load:
    """Clients that embed and click, by the client of the package with its own retries."""

    client: Client
    done: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def working(self, count: int = 6) -> AsyncIterator[None]:
        """Work while the block runs."""
        over = asyncio.Event()
        tasks = [asyncio.create_task(self._work(random.Random(n), over)) for n in range(count)]
        try:
            yield
        finally:
            over.set()
            await asyncio.gather(*tasks)

    async def more(self, count: int) -> Counter[str]:
        """Wait for so many more of each kind of call, and give what is done then."""
        before = self.done.copy()
        async with asyncio.timeout(120):
            while any(self.done[kind] < before[kind] + count for kind in ("Embed", "Predict")):
                await asyncio.sleep(0.05)
        return self.done.copy()

    async def _work(self, rng: random.Random, over: asyncio.Event) -> None:
        while not over.is_set():
            picture = rng.choice(PICTURES)
            try:
                embedding = await self.client.embed(picture)
                self.done["Embed"] += 1
                for _ in range(3):
                    prompt = Prompt(points=[(rng.uniform(1, 60), rng.uniform(1, 40))])
                    await self.client.predict(embedding, [prompt])
                    self.done["Predict"] += 1
            except SamserveClientError as error:
                self.failed.append(f"{type(error).__name__}: {error}")
