"""One target in a process of its own: libFuzzer ends the process when it has done its runs."""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import atheris  # type: ignore[import-untyped]

# Only the product is measured for coverage: the rest would only take time.
with atheris.instrument_imports(include=["samserve"]):
    from fuzz import mutation, target
    from fuzz.recorder import Bounds, Recorder

MOST_BYTES = 4096
# libFuzzer kills what takes this many times the bound, by which the recorder judges: the recorder
# lets what was slow run twice, since the machine may have been busy.
_HANGS = 5
_REPORT_EVERY_S = 1.0
# More than atheris itself loses in the longest run of one process.
_LEAKED_MB = 512
# Much of what libFuzzer finds interesting is refused early; a seed is accepted.
_FROM_SEED = 0.25


def main() -> None:
    """Run one target; does not return."""
    options = _arguments().parse_args()
    with atheris.instrument_imports(include=["samserve"]):
        chosen = target.load(options.target)
    seeds = chosen.seeds()
    _write_corpus(seeds, options.folder / "corpus")
    recorder = Recorder(
        target.Target(
            chosen.name, atheris.instrument_func(chosen.run), chosen.seeds, chosen.mutate
        ),
        options.findings,
        Bounds(options.seconds, options.memory_mb),
    )
    recorder.report.seeds = len(seeds)
    report = options.folder / "report.json"
    atheris.Setup(
        _libfuzzer_arguments(options),
        _reporting(recorder, report, options.inputs),
        custom_mutator=_mutator(chosen, seeds),
    )
    atheris.Fuzz()


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--inputs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--memory-mb", type=int, required=True)
    parser.add_argument("--findings", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    return parser


def _libfuzzer_arguments(options: argparse.Namespace) -> list[str]:
    # libFuzzer compares the most that was ever resident, some of it inherited; twice what the
    # recorder allows, so that the recorder speaks first.
    resident_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return [
        "fuzz",
        f"-runs={options.inputs}",
        # 0 would be a random one.
        f"-seed={options.seed + 1}",
        f"-max_len={MOST_BYTES}",
        "-len_control=0",
        "-mutate_depth=2",
        f"-timeout={max(1, math.ceil(_HANGS * options.seconds))}",
        f"-rss_limit_mb={resident_mb + _LEAKED_MB + 2 * options.memory_mb}",
        f"-artifact_prefix={options.findings}/{options.target}-",
        "-print_final_stats=1",
        str(options.folder / "corpus"),
    ]


def _write_corpus(seeds: list[bytes], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for index, seed in enumerate(seeds):
        (folder / f"seed-{index:03d}").write_bytes(seed[:MOST_BYTES])


def _reporting(recorder: Recorder, path: Path, last: int) -> Callable[[bytes], None]:
    """Run inputs and write the report now and then, and from the last one on.

    libFuzzer ends the process without Python's `atexit`, and it may be killed at any time.
    """
    due = 0.0

    def run(data: bytes) -> None:
        nonlocal due
        recorder(data)
        if time.monotonic() > due or recorder.report.inputs >= last:
            due = time.monotonic() + _REPORT_EVERY_S
            recorder.report.write(path)

    return run


def _mutator(chosen: target.Target, seeds: list[bytes]) -> Callable[[bytes, int, int], bytes]:
    """Mutate by structure, by libFuzzer's own means, or put two inputs together."""

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < _FROM_SEED:
            data = random.choice(seeds)[:most]
        kind = random.random()
        if kind < 0.5:
            return chosen.mutate(data, random)[:most]
        if kind < 0.6:
            return mutation.spliced(data, random.choice(seeds), random)[:most]
        return bytes(atheris.Mutate(data, most))

    return mutate


if __name__ == "__main__":
    main()
