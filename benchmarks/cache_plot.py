"""Tables and figure of `benchmarks.cache`: which tier served the calls, and how long that took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TIERS = ("L1 hit", "L2 hit", "encode")

_COLOURS = {"L1 hit": "#2a7f8e", "L2 hit": "#e0a030", "encode": "#b5473c"}
_STAGE = "#777777"


@dataclass(frozen=True, slots=True)
class Call:
    """Milliseconds of one call, of its cache lookups, and of the encoder if it ran."""

    total_ms: float
    get_ms: float
    encode_ms: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """The calls of one scenario that one tier served: their ratio, and milliseconds."""

    scenario: str
    tier: str
    ratio: float
    p50: float
    p99: float
    get_p50: float
    get_p99: float
    encode_p50: float
    encode_p99: float


def rows(scenario: str, by_tier: Mapping[str, Sequence[Call]]) -> Iterator[Row]:
    """Yield a summary of the calls of a scenario for each tier."""
    total = sum(map(len, by_tier.values()))
    for tier, calls in by_tier.items():
        encode = [call.encode_ms for call in calls if call.encode_ms is not None]
        yield Row(
            scenario,
            tier,
            len(calls) / total,
            *quantiles([call.total_ms for call in calls]),
            *quantiles([call.get_ms for call in calls]),
            *quantiles(encode),
        )


def quantiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile; NaN if there are no values."""
    if not values:
        return float("nan"), float("nan")
    return float(np.percentile(values, 50)), float(np.percentile(values, 99))


def print_rows(scenario: str, by_tier: Mapping[str, Sequence[Call]]) -> None:
    """Print the table of a scenario."""
    wall = [call.total_ms for calls in by_tier.values() for call in calls]
    encodes = len(by_tier["encode"]) / len(wall) * 1000
    print(
        f"\n{scenario}: {len(wall)} calls, {encodes:.0f} encodes per 1000 calls, "
        f"mean {np.mean(wall):.1f} ms per call\n"
        "  served by    ratio   p50 ms   p99 ms   cache_get_* p50      p99   encode p50      p99"
    )
    for row in rows(scenario, by_tier):
        encode = "" if np.isnan(row.encode_p50) else f"{row.encode_p50:13.1f}{row.encode_p99:9.1f}"
        if row.ratio:
            print(
                f"  {row.tier:11}{row.ratio:7.1%}{row.p50:9.1f}{row.p99:9.1f}"
                f"{row.get_p50:18.2f}{row.get_p99:9.2f}{encode}"
            )


def print_break_even(measured: list[Row], write_ms: float, encode_ms: float) -> None:
    """Print the encoder time from which on the shared tier saves time.

    *write_ms* is the additional cost of a miss, for the write, *encode_ms* the encoder's time when
    nothing else runs.
    """
    by_name: dict[str, dict[str, Row]] = {}
    for row in measured:
        by_name.setdefault(row.scenario, {})[row.tier] = row
    loaded_ms = by_name["L1 only"]["encode"].encode_p50
    print()
    for name, tiers in by_name.items():
        hit, miss = tiers["L2 hit"], tiers["encode"]
        if not hit.ratio:
            continue
        hit_ratio = hit.ratio / (hit.ratio + miss.ratio)
        wasted_ms = miss.get_p50 + write_ms if miss.ratio else 0.0
        least_ms = hit.get_p50 + (1 - hit_ratio) / hit_ratio * wasted_ms
        print(
            f"Break-even of L2 ({name}): a read takes {hit.get_p50:.1f} ms; an encode takes "
            f"{encode_ms:.0f} ms alone, {encode_ms / hit.get_p50:.0f} times as long,\n"
            f"  and {loaded_ms:.0f} ms next to the other gateway, "
            f"{loaded_ms / hit.get_p50:.0f} times.  L2 has {hit_ratio:.0%} of the L1 misses: "
            f"it saves time with encoders slower than {least_ms:.1f} ms."
        )


def draw(measured: list[Row], title: str, path: Path) -> None:
    """Write the figure as PNG; times are from the last scenario, which has calls of every tier."""
    # Imported here, so that matplotlib is only needed for the figure.
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    figure.suptitle(title, fontsize=12)
    ratios, times = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _draw_ratios(ratios, measured)
    _draw_times(times, [row for row in measured if row.scenario == measured[-1].scenario])
    for axes in (ratios, times):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


def _draw_ratios(axes, measured: list[Row]) -> None:  # type: ignore[no-untyped-def]
    scenarios = list(dict.fromkeys(row.scenario for row in measured))
    bottoms = dict.fromkeys(scenarios, 0.0)
    for tier in TIERS:
        parts = [row for row in measured if row.tier == tier]
        bars = axes.bar(
            scenarios,
            [100 * row.ratio for row in parts],
            bottom=[bottoms[row.scenario] for row in parts],
            width=0.62,
            color=_COLOURS[tier],
            label=tier,
        )
        labels = [f"{row.ratio:.0%}" if row.ratio >= 0.03 else "" for row in parts]
        axes.bar_label(bars, labels, label_type="center", color="white", weight="bold")
        for row in parts:
            bottoms[row.scenario] += 100 * row.ratio
    axes.set_xticks(range(len(scenarios)), [name.replace(", ", ",\n") for name in scenarios])
    axes.set_ylabel("ratio of calls, %")
    axes.set_ylim(0, 100)
    axes.set_title("Calls by tier", fontsize=11, pad=28)
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def _draw_times(axes, measured: list[Row]) -> None:  # type: ignore[no-untyped-def]
    for x, row in enumerate(measured):
        _draw_span(axes, x - 0.16, (row.p50, row.p99), _COLOURS[row.tier])
        _draw_span(axes, x + 0.2, (row.get_p50, row.get_p99), _STAGE)
    encoder = (measured[-1].encode_p50, measured[-1].encode_p99)
    _draw_span(axes, len(measured), encoder, _COLOURS["encode"])
    axes.set_yscale("log")
    axes.set_ylim(0.01, 3000)
    axes.set_yticks([0.01, 0.1, 1, 10, 100, 1000], ["0.01", "0.1", "1", "10", "100", "1000"])
    axes.set_xlim(-0.5, len(measured) + 0.45)
    names = [row.tier for row in measured]
    axes.set_xticks(range(len(measured) + 1), [*names, "its stage\nencode"])
    axes.set_ylabel("time, ms (log)")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(f"Latency ({measured[0].scenario})", fontsize=11, pad=28)
    _draw_key(axes)


def _draw_span(axes, x: float, span: tuple[float, float], colour: str) -> None:  # type: ignore[no-untyped-def]
    axes.plot([x, x], span, color=colour, linewidth=2)
    for value, marker in zip(span, ("o", "^"), strict=True):
        axes.plot(x, value, marker, color=colour, markersize=7)
        text = f"{value:.0f}" if value >= 10 else f"{value:.2g}"
        axes.annotate(
            text, (x, value), (7, 0), textcoords="offset points", va="center", fontsize=9.5
        )


def _draw_key(axes) -> None:  # type: ignore[no-untyped-def]
    from matplotlib.lines import Line2D  # noqa: PLC0415

    entries = [
        Line2D([], [], color="black", marker="o", linestyle="", label="p50"),
        Line2D([], [], color="black", marker="^", linestyle="", label="p99"),
        Line2D([], [], color=_COLOURS["L1 hit"], linewidth=2, label="whole call"),
        Line2D([], [], color=_STAGE, linewidth=2, label="stage cache_get_*"),
    ]
    axes.legend(
        handles=entries,
        ncols=4,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        frameon=False,
        columnspacing=1.0,
        handletextpad=0.5,
    )
