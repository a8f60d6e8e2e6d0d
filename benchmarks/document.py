"""The tables and plots of `docs/benchmarks.md`, made from `docs/benchmarks.json`.

Each part has its place in the page, between ``<!-- NAME -->`` and ``<!-- end of NAME -->``; text
around these is written by hand.  ``python -m benchmarks --publish`` adds the results of the last
run to the file and writes both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.machine import MIB, ROOT
from benchmarks.parts import PARTS
from benchmarks.results import Comparison, Figure, Latencies, Ratio, Result, dumps, load

PAGE, FILE = ROOT / "docs/benchmarks.md", ROOT / "docs/benchmarks.json"


def publish(folder: Path) -> None:
    """Add the results of *folder* to the file, and write the page and its plots."""
    from benchmarks import plots  # noqa: PLC0415 - matplotlib

    kept = {each.part: each for each in (load(FILE) if FILE.exists() else [])}
    for path in folder.glob("*.json"):
        kept.update({each.part: each for each in load(path)})
    ordered = [kept[name] for name in PARTS if name in kept]
    FILE.write_text(dumps(ordered), encoding="utf-8")
    # Read again: the page has the rounded numbers of the file.
    published = load(FILE)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), published), encoding="utf-8")
    plots.draw({each.part: each for each in published}, ROOT / "docs/images")


def filled(page: str, results: list[Result]) -> str:
    """Return the page with the tables of the results in their places.

    Raises `ValueError` if a result has no place.
    """
    for result in results:
        begin, end = f"<!-- {result.part} -->", f"<!-- end of {result.part} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        content = f"{begin}\n{tables(result)}\n{end}"
        page, count = pattern.subn(lambda _, content=content: content, page)
        if count != 1:
            raise ValueError(f"the page has {count} places for the results of {result.part}")
    return page


def tables(result: Result) -> str:
    """Return when and where a part ran, and its tables, as Markdown."""
    ran = f"Measured on {result.date} in {result.seconds:.0f} s{' (--quick)' * result.quick}"
    where = f"on {result.machine}, load average {result.load[0]:.1f} to {result.load[1]:.1f}"
    lines = [
        f"{ran} {where}; commit {result.commit or 'unknown'}.",
        *_comparisons(result.comparisons),
        *_figures(result.figures),
        *_latencies(result.latencies),
        *(part for note in result.notes for part in ("", note)),
    ]
    return "\n".join(lines)


def _comparisons(comparisons: list[Comparison]) -> Iterator[str]:
    if not comparisons:
        return
    peaks = any(each.our_peak_bytes for each in comparisons)
    agreed = any(each.agreement for each in comparisons)
    heads = ["operation", "baseline", "samserve", "baseline", "time ratio", "CPU ratio"]
    heads += ["peak MiB"] * peaks + ["results"] * agreed
    yield ""
    yield "| " + " | ".join(heads) + " |"
    yield "|---" * len(heads) + "|"
    for each in comparisons:
        ours, theirs = each.medians("wall_s")
        cpu, other_cpu = each.medians("cpu_s")
        cells = [
            each.operation,
            each.baseline,
            f"{_time(ours)}, CPU {_time(cpu)}",
            f"{_time(theirs)}, CPU {_time(other_cpu)}",
            _ratio(each.ratio("wall_s")),
            _ratio(each.ratio("cpu_s")),
        ]
        if peaks:
            cells.append(f"{each.our_peak_bytes / MIB:.0f}, {each.their_peak_bytes / MIB:.0f}")
        if agreed:
            cells.append(each.agreement)
        yield "| " + " | ".join(cells) + " |"


def _figures(figures: list[Figure]) -> Iterator[str]:
    if not figures:
        return
    yield ""
    yield "| | median (quartiles) | |"
    yield "|---|---|---|"
    for each in figures:
        middle, low, high = each.quartiles()
        spread = f" ({_number(low)}-{_number(high)})" if len(each.values) > 1 else ""
        yield f"| {each.name} | {_number(middle)}{spread} | {each.unit} |"


def _latencies(latencies: list[Latencies]) -> Iterator[str]:
    if not latencies:
        return
    yield ""
    yield "| latency, ms | calls | p50 | p90 | p99 | longest |"
    yield "|---|---|---|---|---|---|"
    for each in latencies:
        cells = " | ".join(_number(value) for value in each.percentiles())
        yield f"| {each.name} | {len(each.values_ms)} | {cells} |"


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _time(seconds: float) -> str:
    return f"{_number(seconds)} s" if seconds >= 1 else f"{_number(1e3 * seconds)} ms"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
