"""Runs rendered pods, and clients that put load on them."""

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

from harness.cluster.cluster import Cluster
from harness.pod.pod import Pod
from harness.pod.volumes import References
from tests import sample_images
from tests.chart.rendered import Object, deployment, gateway_deployment, of_kind, only
from tests.cluster.caches import LONG_TIMEOUTS
from tests.secret_leaks import secret

IMAGES = [sample_images.encode(sample_images.noise(48, 64, seed=n)) for n in range(12)]


def tls_secret(issued: trustme.LeafCert) -> dict[str, bytes]:
    """Return the data of a kubernetes.io/tls Secret."""
    key = secret(issued.private_key_pem.bytes().decode()).encode()
    return {"tls.crt": b"".join(blob.bytes() for blob in issued.cert_chain_pems), "tls.key": key}


def shared_cache(cluster: Cluster) -> dict[str, Any]:
    """Return values with the shared tier in *cluster*, and a small local tier.

    Its timeouts are long: a node that a busy machine does not schedule for half a second would be
    an outage, in which embeddings stay on the gateway that computed them.
    """
    return {
        "cache": {"local": {"memory": "64Mi"}, "shared": {"nodes": list(cluster.addresses[:2])}},
        "config": {"cache": {"shared": LONG_TIMEOUTS}},
    }


Secrets = Mapping[str, Mapping[str, bytes]]


def references_of(
    objects: list[Object],
    services: Mapping[str, str] | None = None,
    secrets: Secrets | None = None,
) -> References:
    """Return what the rendered pods refer to."""
    maps = {each["metadata"]["name"]: each for each in of_kind(objects, "ConfigMap")}
    return References(config_maps=maps, services=services or {}, secrets=secrets or {})


def replica_of(
    objects: list[Object],
    component: str = "gateway",
    services: Mapping[str, str] | None = None,
    secrets: Secrets | None = None,
    host: str = "127.0.0.1",
) -> Pod:
    """Return a pod of a Deployment, at a loopback address."""
    spec: dict[str, Any] = deployment(objects, component)["spec"]["template"]["spec"]
    return Pod(spec, references_of(objects, services, secrets), host=host)


async def helm_test(objects: list[Object], address: str, secrets: Secrets | None = None) -> str:
    """Run the `helm test` pod, with the Service at *address*; return its output."""
    test = only(objects, "Pod")
    name = gateway_deployment(objects)["metadata"]["name"]
    async with Pod(
        test["spec"], references_of(objects, {f"{name}:50051": address}, secrets)
    ) as pod:
        return await pod.wait_completed()


@dataclass
class Load:
    """Concurrent Embed and Predict calls with the Python client, which retries."""

    client: Client
    completed: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def running(self, count: int = 6) -> AsyncIterator[None]:
        """Send calls while the block runs."""
        stop = asyncio.Event()
        tasks = [
            asyncio.create_task(self._send_calls(random.Random(n), stop)) for n in range(count)
        ]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def wait_for(self, count: int) -> Counter[str]:
        """Wait for *count* more calls of each method; return the completed calls."""
        before = self.completed.copy()
        async with asyncio.timeout(120):
            while any(
                self.completed[method] < before[method] + count for method in ("Embed", "Predict")
            ):
                await asyncio.sleep(0.05)
        return self.completed.copy()

    async def _send_calls(self, rng: random.Random, stop: asyncio.Event) -> None:
        while not stop.is_set():
            image = rng.choice(IMAGES)
            try:
                embedding = await self.client.embed(image)
                self.completed["Embed"] += 1
                for _ in range(3):
                    prompt = Prompt(points=[(rng.uniform(1, 60), rng.uniform(1, 40))])
                    await self.client.predict(embedding, [prompt])
                    self.completed["Predict"] += 1
            except SamserveClientError as error:
                self.errors.append(f"{type(error).__name__}: {error}")
