"""What the shared cache saves and costs: a Zipf workload over more images than memory holds.

Two gateways share a Valkey cluster of six nodes.  The memory of each (L1) holds a tenth of the
embeddings; the cluster (L2) is absent, holds all of them, or half.  All is real, in processes of
its own, and up at once; the scenarios take turns in rounds, with the same clicks.  A click names an
embedding by its id and, where that is not found, sends the image.  L1 and L2 start with the most
wanted images, and a tenth of the clicks is made before anything is counted.

Who answered is known exactly: a call tells so by its stages, which are ``encode``, or ``join`` for
one that waited for another's, where the encoder ran, and ``cache_get_shared`` or
``cache_get_memory`` where the embedding was found.  What the gateways count as found in memory
meanwhile is printed beside it; a second look of the same call is not in it.  Each gateway has one
client, which clicks again when it has its answer.  With ``--rate`` clicks come when they come
(Poisson), may overlap, and are timed from when they should have begun.

Then what it costs, with one call at a time: the look whether an embedding in memory was deleted
elsewhere (gateways with the fake engine, beside whose decoder it can be seen), and what an Embed of
a new image writes, beside 2 MiB by redis-py alone.

``python -m benchmarks.cache [--pictures 200] [--requests 2000] [--exponent 1.1] [--seed 1]
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

from benchmarks.cache_plot import TIERS, Call, Row, draw, print_rows, print_worth, quantiles, rows
from benchmarks.common import cpu_s
from harness.cluster.cluster import Cluster
from tests.cluster.gateways import Gateway, gateways

EMBEDDING_BYTES = 2 << 20
L1_SHARE = 0.1
SIZE = (160, 120)
KINDS = ("local", "shared", "durable")
_CLICK = [Prompt(points=[(SIZE[0] / 2, SIZE[1] / 2)])]
_PUT = """
redis.call('HSET', KEYS[1], 'v', ARGV[1], 's', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""


@dataclass
class Scenario:
    """Two gateways with a client each, and the calls by the tier that answered."""

    name: str
    cluster: Cluster | None
    gateways: list[Gateway]
    clients: list[Client]
    calls: dict[str, list[Call]] = field(default_factory=lambda: {tier: [] for tier in TIERS})
    refused: int = 0
    counted: float = 0.0
    """Embeddings that the gateways have found in memory, as they say."""

    def forget(self) -> None:
        """Forget what was measured."""
        self.calls, self.refused, self.counted = {tier: [] for tier in TIERS}, 0, 0.0

    def note(self, stages_ms: Mapping[str, float], total_ms: float) -> None:
        """Remember a call by who has answered it."""
        # Who met an encode under way has waited for it.
        encode_ms = stages_ms.get("encode", stages_ms.get("join"))
        found = "L2 hit" if "cache_get_shared" in stages_ms else "L1 hit"
        tier = found if encode_ms is None else "encode"
        self.calls[tier].append(Call(total_ms, get_ms(stages_ms), encode_ms))

    async def hits(self) -> float:
        """Embeddings that its gateways have found in memory so far."""
        labels = {"tier": "memory", "result": "hit"}
        asked = (each.metric("samserve_cache_requests_total", **labels) for each in self.gateways)
        return sum(await asyncio.gather(*asked))


def get_ms(stages_ms: Mapping[str, float]) -> float:
    """Add up looks into the store: the stage is named by what came of each."""
    return sum(spent for stage, spent in stages_ms.items() if stage.startswith("cache_get_"))


def small_image(number: int, seed: int) -> bytes:
    """Make a small JPEG, always the same for its number."""
    random = np.random.default_rng((seed, number))
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    buffer = BytesIO()
    coarse.resize(SIZE, Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


class Workload:
    """Images, numbered from the most wanted, and who wants which of them when."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.count, self.rate = options.pictures, options.rate
        self.ids: dict[int, str] = {}
        self._images = [small_image(number, options.seed) for number in range(self.count)]
        self._random = np.random.default_rng(options.seed)
        weights = np.arange(1.0, self.count + 1) ** -options.exponent
        self._chances = weights / weights.sum()

    def draw(self, count: int) -> list[tuple[float, int]]:
        """Draw so many clicks: when each should begin, in seconds, and its image."""
        gaps = self._random.exponential(1 / self.rate, count) if self.rate else np.zeros(count)
        numbers = self._random.choice(self.count, count, p=self._chances)
        return list(zip(gaps.cumsum().tolist(), numbers.tolist(), strict=True))

    async def fill(self, scenario: Scenario, holds: int) -> None:
        """Embed the most wanted images on both gateways, the very most wanted last."""
        for number in reversed(range(holds)):
            for client in scenario.clients:
                embedding = await client.embed(self._images[number])
                self.ids[number] = embedding.id

    async def play(self, scenario: Scenario, clicks: list[tuple[float, int]]) -> None:
        """Let the clients of a scenario make these clicks, each every second one."""
        work = self._whenever if self.rate else self._in_turn
        before = await scenario.hits()
        each = enumerate(scenario.clients)
        await asyncio.gather(*(work(scenario, client, clicks[i::2]) for i, client in each))
        scenario.counted += await scenario.hits() - before

    async def _in_turn(
        self, scenario: Scenario, client: Client, clicks: list[tuple[float, int]]
    ) -> None:
        for _, number in clicks:
            await self._click(scenario, client, number, time.perf_counter())

    async def _whenever(
        self, scenario: Scenario, client: Client, clicks: list[tuple[float, int]]
    ) -> None:
        started, tasks = time.perf_counter(), []
        for at, number in clicks:
            await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
            tasks.append(asyncio.create_task(self._click(scenario, client, number, started + at)))
        await asyncio.gather(*tasks)

    async def _click(self, scenario: Scenario, client: Client, number: int, begin: float) -> None:
        """Click once, and heal; it is not noted if that is refused."""
        image = self._images[number]
        try:
            answer = await client.predict(self.ids[number], _CLICK, image=image)
        except SamserveClientError:
            scenario.refused += 1
            return
        scenario.note(answer.timings_ms, (time.perf_counter() - begin) * 1e3)


def slots(options: argparse.Namespace) -> int:
    """Embeddings that the memory of one gateway holds."""
    wanted: float = options.pictures * L1_SHARE
    return max(4, round(wanted))


@asynccontextmanager
async def scenario(
    name: str, cluster: Cluster | None, options: argparse.Namespace
) -> AsyncIterator[Scenario]:
    """Run two gateways and connect to them."""
    settings = {
        "engine__kind": options.engine,
        "store__capacity_bytes": slots(options) * EMBEDDING_BYTES,
    }
    async with AsyncExitStack() as stack:
        servers = await stack.enter_async_context(gateways(cluster, 2, **settings))
        clients = [await stack.enter_async_context(Client(each.address)) for each in servers]
        yield Scenario(name, cluster, servers, clients)


def limit(cluster: Cluster) -> None:
    """Let the masters hold no more than they do now, besides what two writes take for a moment."""
    for node in cluster.masters:
        used: int = node.command("INFO", "memory")["used_memory"]
        node.command("CONFIG", "SET", "maxmemory", used + 2 * EMBEDDING_BYTES)


async def measure_tiers(
    options: argparse.Namespace, scenarios: list[Scenario], half: Cluster
) -> list[Row]:
    """Fill the tiers, play the workload in rounds, and print who answered."""
    work = Workload(options)
    alone, with_all, with_half = scenarios
    await work.fill(with_all, work.count)
    await work.fill(with_half, work.count // 2)
    limit(half)
    await work.fill(alone, slots(options))
    clicks = work.draw(options.requests // 10)
    for one in scenarios:
        await work.play(one, clicks)
        one.forget()
    for _ in range(options.rounds):
        clicks = work.draw(options.requests // options.rounds)
        for one in scenarios:
            await work.play(one, clicks)
    for one in scenarios:
        print_rows(one.name, one.calls)
        await print_state(one)
    return [row for one in scenarios for row in rows(one.name, one.calls)]


async def print_state(one: Scenario) -> None:
    """Print what a scenario's cluster holds, and what went wrong."""
    failures = [
        await gateway.metric("samserve_cache_failures_total", kind="unavailable")
        for gateway in one.gateways
    ]
    held = len(one.cluster.keys()) if one.cluster else 0
    print(
        f"  at the end L2 holds {held}; commands that it did not answer: {sum(failures):.0f}; "
        f"calls that were refused: {one.refused}; found in L1, as counted: {one.counted:.0f}"
    )


@dataclass
class Way:
    """One way of doing something, and what it took each time."""

    name: str
    do: Callable[[int], Awaitable[Sequence[float]]]
    took: list[Sequence[float]] = field(default_factory=list)
    gateway: Gateway | None = None
    cpu_us: list[float] = field(default_factory=list)

    def cpu_s(self) -> float:
        """CPU seconds of the gateway so far."""
        return cpu_s(self.gateway.process.pid) if self.gateway else 0

    async def times(self, first: int, count: int) -> None:
        """Do it so many times, numbered from *first*."""
        before = self.cpu_s()
        for number in range(first, first + count):
            self.took.append(await self.do(number))
        self.cpu_us.append((self.cpu_s() - before) / count * 1e6)


async def measure_check(cluster: Cluster, rounds: int) -> None:
    """Print what it costs to ask whether an embedding in memory was deleted elsewhere."""
    kinds = {
        "no cluster": (None, {}),
        "check_s=3600": (cluster, {"cache__check_s": 3600}),
        "check_s=0": (cluster, {"cache__check_s": 0}),
    }
    async with AsyncExitStack() as stack:
        ways = []
        for name, (shared, changes) in kinds.items():
            started = gateways(shared, 1, cache__prefix="check", **changes)
            (gateway,) = await stack.enter_async_context(started)
            client = await stack.enter_async_context(Client(gateway.address))
            embedding = await client.embed(small_image(0, 0))
            ways.append(Way(name, partial(_found, client, embedding.id), gateway=gateway))
        for _ in range(rounds):
            for way in ways:
                await way.times(0, 200)
    print(
        "\nA click on an L1 hit, fake engine\n                   p50 ms  cache_get_* p50   CPU us"
    )
    for way in ways:
        wall, get = np.median(way.took, axis=0)
        print(f"  {way.name:14}{wall:9.2f}{get:17.3f}{np.mean(way.cpu_us):9.0f}")


async def _found(client: Client, embedding_id: str, _: int) -> tuple[float, float]:
    started = time.perf_counter()
    answer = await client.predict(embedding_id, _CLICK)
    return (time.perf_counter() - started) * 1e3, get_ms(answer.timings_ms)


async def measure_writes(
    alone: Scenario, shared: Scenario, cluster: Cluster, seed: int, count: int
) -> tuple[float, float]:
    """Print what writing to the cluster takes; give what it adds, and the encoder's own time."""
    embeds = [
        Way("no cluster", partial(_embed, alone.clients[0], "local", seed)),
        Way("shared", partial(_embed, shared.clients[0], "shared", seed)),
        Way("durable", partial(_embed, shared.clients[0], "durable", seed)),
    ]
    raw = [
        Way("EVAL that writes", partial(_raw, cluster, (_put,))),
        Way("EVAL, then WAIT", partial(_raw, cluster, (_put, lambda key: ("WAIT", 1, 1000)))),
        Way("HMGET", partial(_raw, cluster, (lambda key: ("HMGET", key, "v", "s"),))),
    ]
    for number in range(count):
        for way in (*embeds, *raw):
            await way.times(number, 1)
    print(
        "\nEmbed of a new image, one at a time\n"
        "                  p50 ms   p99 ms   encode p50   all else p50      p99"
    )
    for way in embeds:
        wall, encode = np.transpose(way.took)
        rest = quantiles((wall - encode).tolist())
        p50, p99 = quantiles(wall.tolist())
        print(
            f"  {way.name:13}{p50:9.1f}{p99:9.1f}{np.median(encode):13.1f}"
            f"{rest[0]:15.2f}{rest[1]:9.2f}"
        )
    print("\n2 MiB by redis-py   p50 ms   p99 ms")
    for way in raw:
        p50, p99 = quantiles([each for (each,) in way.took])
        print(f"  {way.name:17}{p50:7.2f}{p99:9.2f}")
    without, with_it = (np.median([a - b for a, b in way.took]) for way in embeds[:2])
    return float(with_it - without), float(np.median([encode for _, encode in embeds[0].took]))


async def _embed(client: Client, kind: str, seed: int, number: int) -> tuple[float, float]:
    fresh = small_image(number, seed + 1 + KINDS.index(kind))
    started = time.perf_counter()
    embedding = await client.embed(fresh, durable=kind == "durable")
    took_ms = (time.perf_counter() - started) * 1e3
    assert not embedding.cached
    assert embedding.stored == ("local" if kind == "local" else "shared")
    return took_ms, embedding.timings_ms["encode"]


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
        found = await measure_tiers(options, scenarios, half)
        write_ms, encode_ms = await measure_writes(
            scenarios[0], scenarios[1], whole, options.seed, 5 * options.rounds
        )
    await measure_check(whole, options.rounds)
    print_worth(found, write_ms, encode_ms)
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--requests", type=int, default=2000, help="clicks of each scenario")
    parser.add_argument("--exponent", type=float, default=1.1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0, help="clicks a second; 0: closed loop")
    parser.add_argument("--engine", choices=("onnx", "fake"), default="onnx")
    parser.add_argument("--out", type=Path, nargs="?", const=Path("docs/images/cache.png"))
    options = parser.parse_args()
    room = 2 * options.pictures * EMBEDDING_BYTES
    with Cluster(maxmemory=room) as whole, Cluster(maxmemory=room) as half:
        found = asyncio.run(measure(options, whole, half))
    if options.out is not None:
        title = (
            f"Clicks on {options.pictures} images (Zipf {options.exponent}) at two gateways; "
            f"the memory of each holds {slots(options)} embeddings of 2 MiB"
        )
        draw(found, title, options.out)


if __name__ == "__main__":
    main()
