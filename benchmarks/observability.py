"""What metrics, log lines and traces add to a call: CPU microseconds of the gateway's process.

Gateways with the fake engine, in processes of their own, are all alive and called in turns of a few
calls, one at a time, in an order that is shuffled at every turn.  After a round of such turns the
CPU time of each, all threads and its work in the background included, is compared with that of the
bare gateway: one pair.  What is reported is the mean difference and its 95 % confidence interval
(Student's t), whose upper bound is what must be within a budget.  Processes differ in luck, so
each pair has new ones unless ``--renew`` says otherwise.

``bare`` is a gateway without instruments: no counters and histograms of calls and of runs of the
engine, no log line, no look at the event loop's lag.  What is kept: what is learnt about a call on
its way, its request id, the store's counts, and the stage clock, which answers need for their
``timings``; ``no clock`` is without that, too, and makes up what it answers.
``bare again`` is the same once more: how far the two are apart is what the comparison is off by.
``metrics`` is what ships, but log lines of calls are turned off by their level; its engine counts
its runs as the real ones do.  ``logs`` has one line of JSON for each call besides, to /dev/null.
``1 in 100`` and ``all sampled`` add traces to ``metrics``: at the default ratio, and of every call,
since the client says so in its metadata; no budget is set for that.  Spans go to a receiver in a
process of its own, and all have left when a round ends, so that sending them counts.

What is equal in all is made small, for it is noise here: the engine always answers what it drew
first, a click asks for logits only, memory that is freed is not given back, and the first full
collection of garbage, which takes as long as dozens of calls and comes once, is over.

``python -m benchmarks.observability [--pairs 30] [--turns 10] [--calls 50] [--renew 1] [--seed 1]
[--json FILE] [--only VARIANT ...]``
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, cast

import grpc
from PIL import Image
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from benchmarks.allocator import ALLOCATOR
from benchmarks.observed import SIDE

FEWEST_PAIRS = 20
KINDS = ("Predict", "Embed")
_WARM_UP = (5, 30)
_SAMPLED = (("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-01"),)


@dataclass(frozen=True)
class Variant:
    """A way to run the gateway; ``budget_us``, if any, is what a Predict may cost more."""

    name: str
    bare: bool = False
    clock: bool = True
    log_level: str = "warning"
    traced: bool = False
    metadata: tuple[tuple[str, str], ...] = ()
    budget_us: int = 0


VARIANTS = (
    Variant("bare", bare=True),
    Variant("bare again", bare=True),
    Variant("no clock", bare=True, clock=False),
    Variant("metrics", budget_us=100),
    Variant("logs", log_level="info"),
    Variant("1 in 100", traced=True, budget_us=250),
    Variant("all sampled", traced=True, metadata=_SAMPLED),
)


Child = subprocess.Popen[str]
Call = Callable[[], object]


def line(process: Child) -> str:
    """Give the next line of a process: first its address, then an answer to each question."""
    found = cast("IO[str]", process.stdout).readline().strip()
    if not found:
        raise SystemExit("a process of the benchmark has ended")
    return found


def ask(process: Child) -> float:
    """Ask a process for its CPU seconds so far, or for the spans since the last question."""
    asked = cast("IO[str]", process.stdin)
    asked.write("\n")
    asked.flush()
    return float(line(process))


def child(variant: Variant | None = None, endpoint: str = "") -> Child:
    """Begin to run a gateway, or without a variant the receiver; ends when its block does."""
    command, log = [sys.executable, "-m", "benchmarks.observed"], None
    if variant is not None:
        settings = {
            "server": {"port": 0, "admin_port": 0},
            "store": {"capacity_bytes": 64 << 20},
            "log": {"level": variant.log_level, "format": "json"},
            "trace": {"endpoint": endpoint if variant.traced else ""},
        }
        command += [json.dumps(settings), *(["--bare"] if variant.bare else [])]
        command += [] if variant.clock else ["--no-clock"]
        log = subprocess.DEVNULL if variant.log_level == "info" else None
    env = {**os.environ, **ALLOCATOR}
    return subprocess.Popen(command, stdin=-1, stdout=-1, stderr=log, text=True, env=env)


@dataclass
class Gateway:
    """A gateway that runs, and what is called in it."""

    name: str
    process: Child
    calls: dict[str, Call]

    def call(self, kind: str, times: int) -> None:
        """Call it so many times, one by one."""
        for _ in range(times):
            self.calls[kind]()


@contextmanager
def connected(variant: Variant, process: Child) -> Iterator[Gateway]:
    """Connect to a gateway, to click on a picture that is embedded, or to embed it once more."""
    buffer = BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(buffer, "PNG")
    embed = pb.EmbedRequest(image=pb.Image(encoded=buffer.getvalue()))
    click = pb.Point(x=SIDE / 2, y=SIDE / 2, label=pb.Point.LABEL_FOREGROUND)
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(line(process), options) as channel:
        stub = SegmentationServiceStub(channel)
        predict = pb.PredictRequest(
            embedding_id=stub.Embed(embed).embedding.id,
            prompts=[pb.Prompt(points=[click])],
            output_mode=pb.OUTPUT_MODE_LOW_RES_LOGITS,
        )
        calls: dict[str, Call] = {
            "Predict": partial(stub.Predict, predict, metadata=variant.metadata),
            "Embed": partial(stub.Embed, embed, metadata=variant.metadata),
        }
        yield Gateway(variant.name, process, calls)


@dataclass
class Found:
    """CPU microseconds of a call, and spans of a call of all variants, a value for each round."""

    spent_us: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: {kind: {} for kind in KINDS}
    )
    spans: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})


def measure(options: argparse.Namespace) -> Found:
    """Measure so many pairs."""
    found, shuffled = Found(), random.Random(options.seed)  # noqa: S311 - no secret
    only = options.only or [each.name for each in VARIANTS]
    variants = [each for each in VARIANTS if each.name in ("bare", *only)]
    for first in range(0, options.pairs, options.renew):
        with ExitStack() as stack:
            receiver = stack.enter_context(child())
            endpoint = f"http://{line(receiver)}"
            children = [stack.enter_context(child(each, endpoint)) for each in variants]
            pairs = zip(variants, children, strict=True)
            gateways = [stack.enter_context(connected(*pair)) for pair in pairs]
            for kind in KINDS:
                play(kind, gateways, _WARM_UP, shuffled)
            ask(receiver)
            for _ in range(first, min(options.pairs, first + options.renew)):
                for kind in KINDS:
                    spent_us = play(kind, gateways, (options.turns, options.calls), shuffled)
                    for each, spent in zip(gateways, spent_us, strict=True):
                        found.spent_us[kind].setdefault(each.name, []).append(spent)
                    found.spans[kind].append(ask(receiver) / options.turns / options.calls)
    return found


def play(
    kind: str, gateways: list[Gateway], times: tuple[int, int], shuffled: random.Random
) -> list[float]:
    """Call the gateways in turns of some calls; gives the CPU microseconds of a call of each."""
    turns, calls = times
    before = [ask(each.process) for each in gateways]
    for _ in range(turns):
        for each in shuffled.sample(gateways, len(gateways)):
            each.call(kind, calls)
    after = [ask(each.process) for each in gateways]
    return [(end - begin) / turns / calls * 1e6 for begin, end in zip(before, after, strict=True)]


def t_quantile(freedom: int) -> float:
    """Give Student's t for a 95 % interval on both sides (Fisher's expansion in 1/freedom)."""
    z = statistics.NormalDist().inv_cdf(0.975)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + (z**3 + z) / 4 / freedom + second / freedom**2


def compare(spent: Sequence[float], bare: Sequence[float]) -> dict[str, float]:
    """Compare CPU microseconds round by round: how much they are more, and the interval's ends."""
    pairs = [ours - theirs for ours, theirs in zip(spent, bare, strict=True)]
    more = statistics.mean(pairs)
    margin = t_quantile(len(pairs) - 1) * statistics.stdev(pairs) / len(pairs) ** 0.5
    return {
        "cpu_us": statistics.mean(spent),
        "more": more,
        "low": more - margin,
        "high": more + margin,
        "median": statistics.median(pairs),
    }


def compared(found: Found) -> dict[str, dict[str, dict[str, float]]]:
    """Compare each variant with the bare one, by kind of call."""
    return {
        kind: {name: compare(spent, rounds["bare"]) for name, spent in rounds.items()}
        for kind, rounds in found.spent_us.items()
    }


def show(found: Found) -> None:
    """Print a table for each kind of call, and whether the budgets are kept."""
    pairs = len(found.spans["Predict"])
    for kind, by_name in compared(found).items():
        spans = statistics.mean(found.spans[kind])
        print(f"\n{kind}: {pairs} pairs, CPU us a call; {spans:.2f} spans a call have arrived")
        print(f"{'':12}{'all':>7}{'more':>8}{'95 % CI of it':>20}{'median':>8}  budget")
        for variant in (each for each in VARIANTS if each.name in by_name):
            row = by_name[variant.name]
            budget = ""
            if variant.budget_us and kind == "Predict":
                kept = "kept" if row["high"] < variant.budget_us else "EXCEEDED"
                budget = f"{variant.budget_us}: {'too few pairs' if pairs < FEWEST_PAIRS else kept}"
            print(
                f"{variant.name:12}{row['cpu_us']:7.0f}{row['more']:8.1f}"
                f"{row['low']:9.1f} to {row['high']:7.1f}{row['median']:8.1f}  {budget}"
            )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30, help="2 or more; a verdict takes 20")
    parser.add_argument("--turns", type=int, default=10, help="turns of each gateway in a round")
    parser.add_argument("--calls", type=int, default=50, help="calls of a turn")
    parser.add_argument("--renew", type=int, default=1, help="rounds with the same processes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    names = [each.name for each in VARIANTS]
    parser.add_argument("--only", nargs="+", choices=names, help="variants besides the bare one")
    options = parser.parse_args()
    found = measure(options)
    show(found)
    if options.json is not None:
        table = {"compared": compared(found), **asdict(found)}
        options.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
