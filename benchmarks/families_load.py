"""Clicks on three families while embeddings of up to 8 MiB are written to and read from a cluster.

Two gateways share a Valkey cluster of six nodes, all in processes of their own.  The models have
the published tensor sizes of SAM 1, SAM-HQ and SAM 2 (2, 6 and 8 MiB) and compute almost nothing,
so that everything else is measured.  Clicks are Predict calls on embeddings that both gateways
hold; they arrive at random and are timed from the moment at which they were due.  Blocks with and
without the other traffic alternate, with as many clicks per second: in the other traffic, one
gateway embeds a new image (a write) and the other predicts on it (a read).

Printed for both: the durations of clicks and their ratio, the stages of the slowest, and the
event-loop lag of the gateways (``samserve_event_loop_lag_seconds``).  Then the largest memory of a
gateway beside the documented sum, and how many answers differ from those of a gateway that does
nothing else; there must be none.

``--fsync`` is the ``appendfsync`` of the nodes, ``no`` is a cluster without append-only files.
``--engine triton`` uses shared memory; a Triton in Python, as tests use it, adds work of its own.

``python -m benchmarks.families_load [--families sam2] [--blocks 6] [--seconds 10] [--clicks 20]
[--crossings 2] [--engine onnx] [--fsync no] [--replicas 1]``
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import numpy as np
import psutil
from samserve.settings import Settings

from benchmarks.common import options
from harness.cluster.cluster import Cluster
from harness.triton.server import TritonServer
from tests.cluster.families_load import Click, Load
from tests.cluster.gateways import LONG_TIMEOUT_OPTIONS, Gateway, gateway, gateways
from tests.engines.full_size import EMBEDDINGS, write_models

MIB = 1 << 20
CAPACITY = 256 * MIB
SLOWEST = 2
"""Percent of clicks whose stages are printed."""
_DIRECT = build_opener(ProxyHandler({}))
_LAG = "samserve_event_loop_lag_seconds"
_BOUNDS = ("0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1")


@dataclass
class Kind:
    """One kind of blocks: its name, its clicks, and its samples of the lag."""

    name: str
    clicks: list[Click] = field(default_factory=list)
    lag: Counter[str] = field(default_factory=Counter)

    @property
    def clicks_ms(self) -> list[float]:
        """The durations of all clicks."""
        return [each.total_ms for each in self.clicks]

    def slowest(self) -> dict[str, float]:
        """Return the mean milliseconds of the slowest clicks by stage, the longest first."""
        limit = np.percentile(self.clicks_ms, 100 - SLOWEST)
        slow = [each for each in self.clicks if each.total_ms >= limit]
        spent: Counter[str] = Counter()
        for each in slow:
            spent.update({**each.stages_ms})
            spent["outside the gateway"] += each.total_ms - sum(each.stages_ms.values())  # type: ignore[assignment]
        return {stage: total / len(slow) for stage, total in spent.most_common()}


async def lag(servers: Sequence[Gateway]) -> Counter[str]:
    """Return the lag histogram of all gateways so far: sum, count, and samples by bucket."""
    found: Counter[str] = Counter()
    for server in servers:
        text = await asyncio.to_thread(
            lambda url: _DIRECT.open(url).read(), server.admin + "/metrics"
        )
        for line in text.decode().splitlines():
            name, _, value = line.partition(" ")
            if name.startswith(_LAG):
                found[name.removeprefix(_LAG + "_")] += float(value)  # type: ignore[assignment]
    return found


class Memory:
    """The largest resident memory of each gateway, beyond that after its warm-up."""

    def __init__(self, servers: Sequence[Gateway]) -> None:
        self._processes = [psutil.Process(each.process.pid) for each in servers]
        self.base = [each.memory_info().rss for each in self._processes]
        self.peak = list(self.base)

    async def watch(self) -> None:
        """Sample ten times a second, until cancelled."""
        while True:
            now = [each.memory_info().rss for each in self._processes]
            self.peak = list(map(max, self.peak, now))
            await asyncio.sleep(0.1)


async def measure(load: Load, servers: Sequence[Gateway], chosen: argparse.Namespace) -> list[Kind]:
    """Run the blocks alternately."""
    kinds = [Kind("clicks alone"), Kind("with traffic")]
    for number in range(2 * chosen.blocks):
        kind = kinds[number % 2]
        load.clicks.clear()
        before = await lag(servers)
        work = [load.click(chosen.seconds, chosen.clicks)]
        if number % 2:
            work.append(load.cross(chosen.seconds, chosen.crossings))
        await asyncio.gather(*work)
        kind.clicks += load.clicks
        kind.lag.update(await lag(servers))
        kind.lag.subtract(before)
    return kinds


def print_kinds(kinds: Sequence[Kind]) -> None:
    """Print the percentiles of clicks, their ratios, the stages of slow clicks, and the lag."""
    print(f"\n{'':16}{'clicks':>8}{'p50 ms':>9}{'p90 ms':>9}{'p99 ms':>9}{'mean lag ms':>13}")
    rows = [np.percentile(kind.clicks_ms, [50, 90, 99]) for kind in kinds]
    for kind, row in zip(kinds, rows, strict=True):
        lag_ms = 1e3 * kind.lag["sum"] / max(1, kind.lag["count"])
        cells = "".join(f"{each:9.1f}" for each in row)
        print(f"  {kind.name:14}{len(kind.clicks):8}{cells}{lag_ms:13.2f}")
    print(f"  {'ratio':22}" + "".join(f"{each:9.2f}" for each in rows[1] / rows[0]))
    print(f"\nslowest {SLOWEST} % of clicks, mean ms by stage")
    for kind in kinds:
        stages = [f"{stage} {spent:.1f}" for stage, spent in kind.slowest().items() if spent > 0.5]
        print(f"  {kind.name:14}{', '.join(stages)}")
    print("\nsamples of the event-loop lag above, in ms")
    print(f"{'':16}{'samples':>8}" + "".join(f"{1e3 * float(bound):8g}" for bound in _BOUNDS))
    for kind in kinds:
        above = [kind.lag["count"] - kind.lag[f'bucket{{le="{bound}"}}'] for bound in _BOUNDS]
        print(
            f"  {kind.name:14}{kind.lag['count']:8.0f}" + "".join(f"{each:8.0f}" for each in above)
        )


def print_memory(memory: Memory, masters: int) -> None:
    """Print the growth of each gateway beside the parts of the documented sum that apply."""
    defaults = Settings()
    shared = 2 * defaults.cache.shared.max_in_flight_bytes * masters
    pool = defaults.triton.shared_memory_pool_bytes
    parts = {"cache": CAPACITY, "in flight to the cluster": shared, "pool": pool}
    grown = [(peak - base) / MIB for peak, base in zip(memory.peak, memory.base, strict=True)]
    text = " + ".join(f"{nbytes // MIB} ({name})" for name, nbytes in parts.items())
    print(f"\nresident memory after warm-up: {[f'{each / MIB:.0f} MiB' for each in memory.base]}")
    print(f"growth: {[f'{each:.0f} MiB' for each in grown]}, bound: {text} MiB")


@asynccontextmanager
async def alone(models: Path) -> AsyncIterator[Gateway]:
    """Run a gateway without a cluster, with ONNX Runtime."""
    async with gateway(None, engine__kind="onnx", engine__model_repository=models) as server:
        yield server


async def run(chosen: argparse.Namespace, models: Path, engine: dict[str, object]) -> None:
    """Measure and print everything."""
    names = chosen.families.split(",")
    settings = {**engine, **LONG_TIMEOUT_OPTIONS, "cache__local__capacity_bytes": CAPACITY}
    aof = {"no": {"appendonly": "no"}}.get(chosen.fsync, {"appendfsync": chosen.fsync})
    with Cluster(replicas=chosen.replicas, maxmemory=2 << 30, options=aof) as cluster:
        async with gateways(cluster, **settings) as servers:
            load = Load(servers, names)
            memory = Memory(servers)
            watching = asyncio.create_task(memory.watch())
            # Every family is clicked; those of the option cross the cluster.
            load.families = list(EMBEDDINGS)
            await load.prepare(4)
            load.families = names
            try:
                kinds = await measure(load, servers, chosen)
            finally:
                watching.cancel()
        async with alone(models) as server:
            different = await load.differences(server.stub)
    crossed_s = chosen.blocks * chosen.seconds
    print(f"{load.crossed} embeddings written and read, {load.crossed / crossed_s:.1f} per second")
    print_kinds(kinds)
    print_memory(memory, 3)
    print(f"\nanswers: {len(load.answers)}, different from those computed alone: {len(different)}")


def main() -> None:
    """Run the benchmark."""
    chosen = options(
        __doc__,
        families="sam2",
        blocks=6,
        seconds=10.0,
        clicks=20.0,
        crossings=2.0,
        engine="onnx",
        fsync="no",
        replicas=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        write_models(models)
        if chosen.engine == "onnx":
            engine = {"engine__kind": "onnx", "engine__model_repository": models}
            asyncio.run(run(chosen, models, engine))
            return
        server = TritonServer(models, log=Path(folder) / "triton.log")
        with server:
            engine = {
                "engine__kind": "triton",
                "triton__url": server.grpc_address,
                "triton__shared_memory": "required",
            }
            asyncio.run(run(chosen, models, engine))


if __name__ == "__main__":
    main()
