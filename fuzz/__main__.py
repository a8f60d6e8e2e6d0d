"""Fuzz each target in separate processes and print a summary."""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzz import target

MAX_BYTES = 4096
# Atheris leaks up to some thousand bytes per input (results of comparisons, among others).
_MAX_INPUTS_PER_PROCESS = 50_000
_LEAKED_MB = 1024
_ROW = "{:10} {:>9} {:>6} {:>7}  {}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the selected targets; return 1 if there is a finding."""
    options = _parser().parse_args(arguments)
    names = target.NAMES if "all" in options.targets else tuple(dict.fromkeys(options.targets))
    findings = options.findings or Path(tempfile.mkdtemp(prefix="samserve-fuzz-"))
    findings.mkdir(parents=True, exist_ok=True)
    print(_ROW.format("target", "inputs", "seeds", "corpus", "finding"))
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(options.workers) as pool:
        logs = list(
            pool.map(lambda name: _run(name, options, findings, Path(scratch) / name), names)
        )
    if any(logs):
        print(*filter(None, logs), f"The inputs are in {findings}", sep="\n")
    return int(any(logs))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument(
        "targets", nargs="+", metavar="TARGET", help=f"{', '.join(target.NAMES)} or all"
    )
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs for each target")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers")
    parser.add_argument("--workers", type=int, default=1, help="targets that run in parallel")
    parser.add_argument("--seconds", type=float, default=1.0, help="time limit of one input")
    parser.add_argument(
        "--memory-mb", type=int, default=256, help="limit of memory growth by one input"
    )
    parser.add_argument("--findings", type=Path, help="folder for inputs with findings")
    return parser


def _run(name: str, options: argparse.Namespace, findings: Path, folder: Path) -> str:
    """Run a target in successive processes; return the log of a failed one."""
    seeds, command = _prepare(name, options, findings, folder)
    log, done, seed = "", 0, options.seed
    while not log and done < options.inputs:
        seed += 1  # libFuzzer treats 0 as a random seed
        runs = min(options.inputs - done, _MAX_INPUTS_PER_PROCESS)
        result = subprocess.run(
            [*command, f"-runs={runs}", f"-seed={seed}", str(folder / "corpus")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output = result.stdout.decode(errors="replace")
        if result.returncode:
            log = f"\n{name}: the process exited with {result.returncode}\n{output[-4000:]}"
        executed = re.search(r"number_of_executed_units: (\d+)", output)
        done += int(executed[1]) if executed else runs
    corpus_size = len(list((folder / "corpus").iterdir()))
    print(_ROW.format(name, done, seeds, corpus_size, "yes" if log else "-"), flush=True)
    return log


def _prepare(
    name: str, options: argparse.Namespace, findings: Path, folder: Path
) -> tuple[int, list[str]]:
    """Write the corpus and the dictionary; return the number of seeds and a command."""
    chosen = target.load(name)
    seeds = chosen.seeds()
    (folder / "corpus").mkdir(parents=True)
    for index, seed in enumerate(seeds):
        (folder / "corpus" / f"seed-{index:03d}").write_bytes(seed[:MAX_BYTES])
    # libFuzzer rejects a dictionary without entries.
    words = ("".join(f"\\x{byte:02x}" for byte in word) for word in (*chosen.words, b"\0"))
    (folder / "words").write_text("".join(f'"{word}"\n' for word in words))
    return len(seeds), [
        *(sys.executable, "-m", "fuzz.worker", name),
        *(str(options.seconds), str(options.memory_mb)),
        f"-timeout={math.ceil(5 * options.seconds)}",
        f"-rss_limit_mb={_LEAKED_MB + 2 * options.memory_mb}",
        f"-max_len={MAX_BYTES}",
        f"-dict={folder / 'words'}",
        f"-artifact_prefix={findings.resolve()}/{name}-",
        *("-len_control=0", "-use_value_profile=1", "-print_final_stats=1"),
    ]


if __name__ == "__main__":
    sys.exit(main())
