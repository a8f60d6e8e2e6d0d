"""The program: starts each target in processes of its own and prints what came of it."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fuzz.recorder import Report
from fuzz.target import NAMES

_COLUMNS = (
    *("target", "inputs", "seeds", "corpus", "accepted", "refused", "slowest ms"),
    *("most MB", "RSS growth MB", "inputs/s", "findings"),
)


# Atheris loses up to some thousand bytes with each input (results of comparisons, for one).
_MOST_INPUTS_OF_A_PROCESS = 50_000


@dataclass(slots=True)
class Outcome:
    """What the processes of one target did, and the inputs that they have kept in the end."""

    target: str
    report: Report
    corpus: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen targets; 1 if there is a finding."""
    options = _parser().parse_args(arguments)
    names = NAMES if "all" in options.targets else tuple(dict.fromkeys(options.targets))
    findings = options.findings or Path(tempfile.mkdtemp(prefix="samserve-fuzz-"))
    findings.mkdir(parents=True, exist_ok=True)
    jobs = [(name, part) for name in names for part in range(options.workers)]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(options.workers) as pool:
        outcomes = list(pool.map(lambda job: _run(job, options, findings, Path(scratch)), jobs))
    return _print(names, outcomes, findings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="+", metavar="TARGET", help=f"{', '.join(NAMES)} or all")
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs for each target")
    parser.add_argument("--seed", type=int, default=0, help="where the random numbers begin")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=float, default=1.0, help="most time for one input")
    parser.add_argument(
        "--memory-mb", type=int, default=256, help="most growth of memory by one input"
    )
    parser.add_argument("--findings", type=Path, help="folder for inputs that break a rule")
    return parser


def _run(
    job: tuple[str, int], options: argparse.Namespace, findings: Path, scratch: Path
) -> Outcome:
    """Run one worker's share of the inputs of a target, in one process after the other."""
    name, part = job
    folder = scratch / f"{name}-{part}"
    folder.mkdir()
    left = options.inputs // options.workers + (part < options.inputs % options.workers)
    seed = options.seed + 1000 * part
    outcome = Outcome(name, Report())
    while left > 0:
        share = min(left, _MOST_INPUTS_OF_A_PROCESS)
        outcome.report.add(_run_process(name, share, seed, folder, options, findings))
        left, seed = left - share, seed + 1
    outcome.corpus = len(list((folder / "corpus").glob("*")))
    return outcome


def _run_process(
    name: str, inputs: int, seed: int, folder: Path, options: argparse.Namespace, findings: Path
) -> Report:
    command = [
        *(sys.executable, "-m", "fuzz.worker", name),
        *("--inputs", str(inputs), "--seed", str(seed)),
        *("--seconds", str(options.seconds), "--memory-mb", str(options.memory_mb)),
        *("--findings", str(findings.resolve()), "--folder", str(folder)),
    ]
    (folder / "report.json").unlink(missing_ok=True)
    with (folder / "log").open("wb") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    report = _report(folder / "report.json")
    if code:
        said = (folder / "log").read_text(errors="replace")
        report.findings[f"process ended with {code}"] = "\n".join(said.splitlines()[-30:])
    return report


def _report(path: Path) -> Report:
    return Report.read(path) if path.exists() else Report()


def _print(names: Sequence[str], outcomes: Sequence[Outcome], findings: Path) -> int:
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for name in names:
        rows.append(_row(name, [outcome for outcome in outcomes if outcome.target == name]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print(row[0].ljust(widths[0]), *cells, sep="  ")
    found = [
        f"\n{outcome.target}: {place}\n{why.rstrip()}"
        for outcome in outcomes
        for place, why in outcome.report.findings.items()
    ]
    print(*found, sep="\n")
    if found:
        print(f"\nThe inputs are in {findings}")
    return 1 if found else 0


def _row(name: str, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    reports = [outcome.report for outcome in outcomes]
    inputs = sum(report.inputs for report in reports)
    speed = sum(report.inputs / report.seconds for report in reports if report.seconds)
    return (
        name,
        str(inputs),
        str(max(report.seeds for report in reports)),
        str(sum(outcome.corpus for outcome in outcomes)),
        str(sum(report.accepted for report in reports)),
        str(sum(report.refused for report in reports)),
        f"{max(report.slowest_ms for report in reports):.1f}",
        f"{max(report.most_by_one_mb for report in reports):.0f}",
        f"{max(report.growth_mb for report in reports):.0f}",
        f"{speed:.0f}",
        str(sum(len(report.findings) for report in reports)),
    )
