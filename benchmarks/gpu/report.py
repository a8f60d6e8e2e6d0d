"""Results as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.gpu.device import Device
from benchmarks.gpu.rows import Row

COLUMNS = (
    "network",
    "variant",
    "dtype",
    "prompts",
    "median ms (least to most)",
    "peak MiB",
    "TFLOP",
    "TFLOP/s",
    "bound ms",
    "share of bound",
    "relative error",
    "equal signs",
    "note",
)


@dataclass
class Report:
    """All rows; ``left_out`` are parts that were not run or not finished, with the reason."""

    device: Device
    versions: dict[str, str]
    toy: bool
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> str:
        """Return everything, with the quantities that are derived."""
        content: dict[str, Any] = {
            "device": self.device.title(),
            "toy": self.toy,
            "versions": self.versions,
            "seconds": round(self.seconds, 1),
            "operations_per_second": self.device.rates,
            "copied_bytes_per_second": self.device.bandwidth,
            "rows": [{**asdict(row), **row.shares(self.device)} for row in self.rows],
            "left_out": self.left_out,
        }
        return json.dumps(content, indent=1) + "\n"

    def to_markdown(self) -> str:
        """Return a table for each part, then what was left out."""
        rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in self.device.rates.items())
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines = [
            f"{self.device.title()}; {versions}; {self.seconds:.0f} s"
            + ("; toy sizes, whose times mean nothing" if self.toy else ""),
            "",
            f"Measured on it: matrix product in TFLOP/s: {rates or 'not measured'}; copy in GB/s, "
            f"read and written: {self.device.bandwidth / 1e9:.4g}.",
        ]
        for part in dict.fromkeys(row.part for row in self.rows):
            rows = [row for row in self.rows if row.part == part]
            lines += ["", f"### {part}", "", *self._table(rows)]
        if self.left_out:
            lines += ["", "Left out:", "", *(f"- {each}" for each in self.left_out)]
        return "\n".join(lines) + "\n"

    def _table(self, rows: Sequence[Row]) -> list[str]:
        lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
        return lines + [_line(self._cells(row)) for row in rows]

    def _cells(self, row: Row) -> list[str]:
        timing, shares = row.timing, row.shares(self.device)
        bounds = (shares["arithmetic_bound_ms"], shares["memory_bound_ms"])
        known = [each for each in bounds if each]
        time = f"{timing.median:.3g} ({timing.low:.3g} to {timing.high:.3g})" if timing else ""
        share = shares["share_of_bound"]
        return [
            row.network,
            row.variant,
            row.dtype,
            "" if row.prompts is None else str(row.prompts),
            time,
            _number(timing.peak_mib if timing else None, ".0f"),
            _number(row.tflop, ".3g"),
            _number(shares["achieved_tflops"], ".3g"),
            _number(max(known, default=None), ".3g"),
            _number(share, ".1%"),
            _number(row.error, ".2g"),
            _number(row.signs, ".4%"),
            row.note,
        ]


def _number(value: float | None, kind: str) -> str:
    return "" if value is None else format(value, kind)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
