"""Benefit and cost of the shared tier: a Zipf workload over more images than the local tier holds.

Two gateways share a Valkey cluster of six nodes.  The local tier of each (L1) holds a tenth of the
embeddings; the shared tier (L2) is absent, holds all of them, or half.  All processes are real and
run concurrently; the scenarios alternate in rounds, with the same calls.  A call is Predict by id,
repeated with the image after a miss.  L1 and L2 are filled with the most frequent images, and a
tenth of the calls is a warm-up that is not measured.

The tier that served a call is known exactly from its stages: ``encode`` (or ``join``, if it waited
for the encode of another call) if the encoder ran, otherwise ``cache_get_shared`` or
``cache_get_local``.  The local hits that the gateways count are printed as well; they do not
include a second lookup of the same call.  Each gateway has one client, which sends the next call
after a response.  With ``--rate`` calls arrive at random (Poisson), may overlap, and are timed from
their scheduled arrival.

Then the cost, with one call at a time: of the check whether an embedding in L1 was deleted
elsewhere (with the fake engine, so that the decoder does not hide it), and of the write by an Embed
of a new image, compared with 2 MiB by redis-py alone.

``python -m benchmarks.cache [--images 200] [--requests 2000] [--exponent 1.1] [--seed 1]
[--rounds 10] [--rate 0] [--engine fake] [--out [FILE.png]]``
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from samserve.client import Client, Prompt
from samserve.client.errors import SamserveClientError

from benchmarks.cache_plot import (
    TIERS,
    Call,
    Row,
    draw,
    print_break_even,
    print_rows,
    quantiles,
    rows,
)
from benchmarks.common import cpu_s
from harness.cluster.cluster import Cluster
from tests.cluster.gateways import Gateway, gateways

EMBEDDING_BYTES = 2 << 20
L1_RATIO = 0.1
SIZE = (160, 120)
KINDS = ("local", "shared", "durable")
_PROMPTS = [Prompt(points=[(SIZE[0] / 2, SIZE[1] / 2)])]
_PUT = """
redis.call('HSET', KEYS[1], 'v', ARGV[1], 's', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""


@dataclass
class Scenario:
    """Two gateways with a client each, and their calls by the tier that served them."""

    name: str
    cluster: Cluster | None
    gateways: list[Gateway]
    clients: list[Client]
    calls: dict[str, list[Call]] = field(default_factory=lambda: {tier: [] for tier in TIERS})
    failed: int = 0
    local_hits: float = 0.0
    """Local hits according to the metrics of the gateways."""

    def reset(self) -> None:
        """Discard all measurements."""
        self.calls, self.failed, self.local_hits = {tier: [] for tier in TIERS}, 0, 0.0

    def record(self, stages_ms: Mapping[str, float], total_ms: float) -> None:
        """Record a call under the tier that served it."""
        # A call that joined an encode in flight has waited for it.
        encode_ms = stages_ms.get("encode", stages_ms.get("join"))
        hit = "L2 hit" if "cache_get_shared" in stages_ms else "L1 hit"
        tier = hit if encode_ms is None else "encode"
        self.calls[tier].append(Call(total_ms, get_ms(stages_ms), encode_ms))

    async def hits(self) -> float:
        """Return the local hits of its gateways so far."""
        labels = {"tier": "local", "result": "hit"}
        counts = (each.metric("samserve_cache_requests_total", **labels) for each in self.gateways)
        return sum(await asyncio.gather(*counts))


def get_ms(stages_ms: Mapping[str, float]) -> float:
    """Return the time of all cache lookups of a call, whose stages are named by their result."""
    return sum(spent for stage, spent in stages_ms.items() if stage.startswith("cache_get_"))


def small_image(number: int, seed: int) -> bytes:
    """Return a small JPEG, which is deterministic for its number."""
    random = np.random.default_rng((seed, number))
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    buffer = BytesIO()
    coarse.resize(SIZE, Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


class Workload:
    """Images, numbered from the most frequent, and the calls that use them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.count, self.rate = options.images, options.rate
        self.ids: dict[int, str] = {}
        self._images = [small_image(number, options.seed) for number in range(self.count)]
        self._random = np.random.default_rng(options.seed)
        weights = np.arange(1.0, self.count + 1) ** -options.exponent
        self._probabilities = weights / weights.sum()

    def draw(self, count: int) -> list[tuple[float, int]]:
        """Draw *count* calls: the arrival of each, in seconds, and its image."""
        gaps = self._random.exponential(1 / self.rate, count) if self.rate else np.zeros(count)
        numbers = self._random.choice(self.count, count, p=self._probabilities)
        return list(zip(gaps.cumsum().tolist(), numbers.tolist(), strict=True))

    async def fill(self, scenario: Scenario, count: int) -> None:
        """Embed the *count* most frequent images on both gateways, the most frequent last."""
        for number in reversed(range(count)):
            for client in scenario.clients:
                embedding = await client.embed(self._images[number])
                self.ids[number] = embedding.id

    async def play(self, scenario: Scenario, calls: list[tuple[float, int]]) -> None:
        """Send the calls with the clients of a scenario, alternately."""
        work = self._open_loop if self.rate else self._closed_loop
        before = await scenario.hits()
        each = enumerate(scenario.clients)
        await asyncio.gather(*(work(scenario, client, calls[i::2]) for i, client in each))
        scenario.local_hits += await scenario.hits() - before

    async def _closed_loop(
        self, scenario: Scenario, client: Client, calls: list[tuple[float, int]]
    ) -> None:
        for _, number in calls:
            await self._predict(scenario, client, number, time.perf_counter())

    async def _open_loop(
        self, scenario: Scenario, client: Client, calls: list[tuple[float, int]]
    ) -> None:
        started, tasks = time.perf_counter(), []
        for at, number in calls:
            await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
            tasks.append(asyncio.create_task(self._predict(scenario, client, number, started + at)))
        await asyncio.gather(*tasks)

    async def _predict(self, scenario: Scenario, client: Client, number: int, begin: float) -> None:
        """Predict by id, after a miss with the image; a failed call is counted, not recorded."""
        image = self._images[number]
        try:
            result = await client.predict(self.ids[number], _PROMPTS, image=image)
        except SamserveClientError:
            scenario.failed += 1
            return
        scenario.record(result.timings_ms, (time.perf_counter() - begin) * 1e3)


def slots(options: argparse.Namespace) -> int:
    """Return the number of embeddings in the local tier of one gateway."""
    count: float = options.images * L1_RATIO
    return max(4, round(count))


@asynccontextmanager
async def scenario(
    name: str, cluster: Cluster | None, options: argparse.Namespace
) -> AsyncIterator[Scenario]:
    """Run two gateways and connect to them."""
    settings = {
        "engine__kind": options.engine,
        "cache__local__capacity_bytes": slots(options) * EMBEDDING_BYTES,
    }
    async with AsyncExitStack() as stack:
        servers = await stack.enter_async_context(gateways(cluster, 2, **settings))
        clients = [await stack.enter_async_context(Client(each.address)) for each in servers]
        yield Scenario(name, cluster, servers, clients)


def limit(cluster: Cluster) -> None:
    """Limit the masters to their current memory, plus that of two concurrent writes."""
    for node in cluster.masters:
        used: int = node.command("INFO", "memory")["used_memory"]
        node.command("CONFIG", "SET", "maxmemory", used + 2 * EMBEDDING_BYTES)


async def measure_tiers(
    options: argparse.Namespace, scenarios: list[Scenario], half: Cluster
) -> list[Row]:
    """Fill the tiers, run the workload in rounds, and print the calls by tier."""
    work = Workload(options)
    local_only, with_all, with_half = scenarios
    await work.fill(with_all, work.count)
    await work.fill(with_half, work.count // 2)
    limit(half)
    await work.fill(local_only, slots(options))
    calls = work.draw(options.requests // 10)
    for one in scenarios:
        await work.play(one, calls)
        one.reset()
    for _ in range(options.rounds):
        calls = work.draw(options.requests // options.rounds)
        for one in scenarios:
            await work.play(one, calls)
    for one in scenarios:
        print_rows(one.name, one.calls)
        await print_state(one)
    return [row for one in scenarios for row in rows(one.name, one.calls)]


async def print_state(one: Scenario) -> None:
    """Print the number of embeddings in a scenario's cluster, and its errors."""
    errors = [
        await gateway.metric("samserve_cache_shared_errors_total", kind="unavailable")
        for gateway in one.gateways
    ]
    keys = len(one.cluster.keys()) if one.cluster else 0
    print(
        f"  at the end L2 holds {keys}; commands without a response: {sum(errors):.0f}; "
        f"failed calls: {one.failed}; L1 hits according to the metrics: {one.local_hits:.0f}"
    )


@dataclass
class Variant:
    """One variant of an operation, and its times in milliseconds."""

    name: str
    operation: Callable[[int], Awaitable[Sequence[float]]]
    times_ms: list[Sequence[float]] = field(default_factory=list)
    gateway: Gateway | None = None
    cpu_us: list[float] = field(default_factory=list)

    def cpu_s(self) -> float:
        """Return the CPU seconds of the gateway so far."""
        return cpu_s(self.gateway.process.pid) if self.gateway else 0

    async def repeat(self, first: int, count: int) -> None:
        """Run the operation *count* times, numbered from *first*."""
        before = self.cpu_s()
        for number in range(first, first + count):
            self.times_ms.append(await self.operation(number))
        self.cpu_us.append((self.cpu_s() - before) / count * 1e6)


async def measure_check(cluster: Cluster, rounds: int) -> None:
    """Print the cost of the check whether an embedding in L1 was deleted elsewhere."""
    kinds = {
        "no cluster": (None, {}),
        "check every hour": (cluster, {"cache__shared__revalidate_interval_s": 3600}),
        "check every call": (cluster, {"cache__shared__revalidate_interval_s": 0}),
    }
    async with AsyncExitStack() as stack:
        variants = []
        for name, (shared, changes) in kinds.items():
            started = gateways(shared, 1, cache__shared__key_prefix="check", **changes)
            (gateway,) = await stack.enter_async_context(started)
            client = await stack.enter_async_context(Client(gateway.address))
            embedding = await client.embed(small_image(0, 0))
            variants.append(
                Variant(name, partial(_predict_hit, client, embedding.id), gateway=gateway)
            )
        for _ in range(rounds):
            for variant in variants:
                await variant.repeat(0, 200)
    print(
        "\nPredict with an L1 hit, fake engine\n"
        "                     p50 ms  cache_get_* p50   CPU us"
    )
    for variant in variants:
        wall, get = np.median(variant.times_ms, axis=0)
        print(f"  {variant.name:16}{wall:9.2f}{get:17.3f}{np.mean(variant.cpu_us):9.0f}")


async def _predict_hit(client: Client, embedding_id: str, _: int) -> tuple[float, float]:
    started = time.perf_counter()
    result = await client.predict(embedding_id, _PROMPTS)
    return (time.perf_counter() - started) * 1e3, get_ms(result.timings_ms)


async def measure_writes(
    local_only: Scenario, shared: Scenario, cluster: Cluster, seed: int, count: int
) -> tuple[float, float]:
    """Print the times of writes; return the time that a write adds, and that of the encoder."""
    embeds = [
        Variant("no cluster", partial(_embed, local_only.clients[0], "local", seed)),
        Variant("shared", partial(_embed, shared.clients[0], "shared", seed)),
        Variant("durable", partial(_embed, shared.clients[0], "durable", seed)),
    ]
    raw = [
        Variant("EVAL that writes", partial(_raw, cluster, (_put,))),
        Variant("EVAL, then WAIT", partial(_raw, cluster, (_put, lambda key: ("WAIT", 1, 1000)))),
        Variant("HMGET", partial(_raw, cluster, (lambda key: ("HMGET", key, "v", "s"),))),
    ]
    for number in range(count):
        for variant in (*embeds, *raw):
            await variant.repeat(number, 1)
    print(
        "\nEmbed of a new image, one at a time\n"
        "                  p50 ms   p99 ms   encode p50   all else p50      p99"
    )
    for variant in embeds:
        wall, encode = np.transpose(variant.times_ms)
        rest = quantiles((wall - encode).tolist())
        p50, p99 = quantiles(wall.tolist())
        print(
            f"  {variant.name:13}{p50:9.1f}{p99:9.1f}{np.median(encode):13.1f}"
            f"{rest[0]:15.2f}{rest[1]:9.2f}"
        )
    print("\n2 MiB by redis-py   p50 ms   p99 ms")
    for variant in raw:
        p50, p99 = quantiles([each for (each,) in variant.times_ms])
        print(f"  {variant.name:17}{p50:7.2f}{p99:9.2f}")
    without, with_it = (np.median([a - b for a, b in variant.times_ms]) for variant in embeds[:2])
    return float(with_it - without), float(np.median([encode for _, encode in embeds[0].times_ms]))


async def _embed(client: Client, kind: str, seed: int, number: int) -> tuple[float, float]:
    fresh = small_image(number, seed + 1 + KINDS.index(kind))
    started = time.perf_counter()
    embedding = await client.embed(fresh, durable=kind == "durable")
    elapsed_ms = (time.perf_counter() - started) * 1e3
    assert not embedding.cached
    assert embedding.stored == ("local" if kind == "local" else "shared")
    return elapsed_ms, embedding.timings_ms["encode"]


def _put(key: str) -> tuple[object, ...]:
    value = np.random.default_rng().bytes(EMBEDDING_BYTES)
    return ("EVAL", _PUT, 1, key, value, value[:16], 3_600_000)


async def _raw(
    cluster: Cluster, commands: Sequence[Callable[[str], tuple[object, ...]]], number: int
) -> tuple[float]:
    key = f"raw:{number % 8}"
    node, sent = cluster.owner_of(key), [command(key) for command in commands]
    started = time.perf_counter()
    for each in sent:
        node.command(*each)  # type: ignore[arg-type]
    return ((time.perf_counter() - started) * 1e3,)


async def measure(options: argparse.Namespace, whole: Cluster, half: Cluster) -> list[Row]:
    """Measure everything."""
    async with AsyncExitStack() as stack:
        kinds = {
            "L1 only": None,
            "L1 + L2, all fit": whole,
            "L1 + L2, half fit": half,
        }
        scenarios = [
            await stack.enter_async_context(scenario(name, cluster, options))
            for name, cluster in kinds.items()
        ]
        measured = await measure_tiers(options, scenarios, half)
        write_ms, encode_ms = await measure_writes(
            scenarios[0], scenarios[1], whole, options.seed, 5 * options.rounds
        )
    await measure_check(whole, options.rounds)
    print_break_even(measured, write_ms, encode_ms)
    return measured


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--requests", type=int, default=2000, help="calls of each scenario")
    parser.add_argument("--exponent", type=float, default=1.1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0, help="calls per second; 0: closed loop")
    parser.add_argument("--engine", choices=("onnx", "fake"), default="onnx")
    parser.add_argument("--out", type=Path, nargs="?", const=Path("docs/images/cache.png"))
    options = parser.parse_args()
    capacity = 2 * options.images * EMBEDDING_BYTES
    with Cluster(maxmemory=capacity) as whole, Cluster(maxmemory=capacity) as half:
        measured = asyncio.run(measure(options, whole, half))
    if options.out is not None:
        title = (
            f"Predict calls on {options.images} images (Zipf {options.exponent}) at two gateways; "
            f"the local tier of each holds {slots(options)} embeddings of 2 MiB"
        )
        draw(measured, title, options.out)


if __name__ == "__main__":
    main()
