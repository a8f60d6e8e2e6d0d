"""Dashboards as PNG files, drawn from the responses of a real Prometheus.

Grafana needs a server and a browser.  This module draws the same panels at the same positions, with
the same queries, in the style of matplotlib.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from harness.prometheus.server import PrometheusServer, Series
from monitoring.queries import dashboards, panels, substitute

_COLUMNS = 24
_CELL_IN = (0.78, 0.32)
_LEFT_IN, _TOP_IN = 0.62, 0.85
# Height of the legend, or of the margin of panels without one.
_BOTTOM_IN, _MARGIN_IN = 0.95, 0.55
_DPI = 80
_STEPS = 120
_MAX_ROWS = 9
_MAX_LEGEND = 9
_MAX_CELL = 24
# Of the text in tables.
_CHARS_PER_IN, _LINE_IN = 17, 0.22
_COLORS = {"green": "#56a64b", "yellow": "#e0b400", "orange": "#ff780a", "red": "#e02f44"}
# matplotlib lists all of its settings in a type.
_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
}
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


@dataclass(frozen=True, slots=True)
class Window:
    """The time range, in seconds since the epoch."""

    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Line:
    """A series to draw: times in seconds since the epoch, values, and its name."""

    name: str
    labels: dict[str, str]
    times: list[float]
    values: list[float]


Results = list[list[Line]]
"""The series of a panel, one list for each of its queries."""


def draw(prometheus: PrometheusServer, page: str, window: Window, path: Path) -> None:
    """Draw the dashboard whose title ends with *page*."""
    (dashboard,) = (each for each in dashboards() if each["title"].endswith(page))
    bottom = max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in dashboard["panels"]) + 1
    width, height = _COLUMNS * _CELL_IN[0], bottom * _CELL_IN[1]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=_DPI)
        figure.text(0.01, 1 - 0.06 / height, dashboard["title"], size=13, weight="bold", va="top")
        seconds = f"{window.until - window.since:.0f} s"
        note = f"{seconds} of a test run; windows of 1h and 30d contain this run only"
        figure.text(0.99, 1 - 0.08 / height, note, color="#888888", ha="right", va="top")
        for row in dashboard["panels"]:
            if row["type"] == "row":
                y = 1 - (row["gridPos"]["y"] * _CELL_IN[1] + 0.5) / height
                figure.text(0.01, y, row["title"], size=11, color="#1f60c4", weight="bold")
        for panel in panels(dashboard):
            axes = figure.add_axes(_position(panel, width, height))
            axes.set_title(panel["title"], pad=6)
            results = _results(prometheus, panel, window)
            (_DRAW[panel["type"]] if any(results) else _draw_no_value)(axes, panel, results)
        figure.savefig(path, bbox_inches="tight", pad_inches=0.12)


def _position(
    panel: dict[str, Any], width: float, height: float
) -> tuple[float, float, float, float]:
    """Convert cells from the top left to a ratio of the figure from the bottom left."""
    grid = panel["gridPos"]
    left = grid["x"] * _CELL_IN[0] + _LEFT_IN
    top = grid["y"] * _CELL_IN[1] + _TOP_IN - 0.32
    wide = grid["w"] * _CELL_IN[0] - _LEFT_IN - 0.15
    high = grid["h"] * _CELL_IN[1] - (_BOTTOM_IN if panel["type"] in _WITH_LEGEND else _MARGIN_IN)
    return left / width, 1 - (top + high) / height, wide / width, high / height


def _results(prometheus: PrometheusServer, panel: dict[str, Any], window: Window) -> Results:
    """Evaluate all queries of a panel over the window."""
    shown = f"{math.ceil(window.until - window.since)}s"
    step = (window.until - window.since) / _STEPS
    return [
        [
            _line(series, target["legendFormat"])
            for series in prometheus.query_range(
                substitute(target["expr"], window=shown), window.since, window.until, step
            )
        ]
        for target in panel["targets"]
    ]


def _line(series: Series, legend: str) -> Line:
    labels: dict[str, str] = series["metric"]
    name = re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), legend)
    if not name or name == "__auto":
        name = " ".join(value for key, value in labels.items() if key != "__name__")
    times = [float(moment) for moment, _ in series["values"]]
    return Line(
        " ".join(name.split()), labels, times, [float(value) for _, value in series["values"]]
    )


def _draw_series(axes: Axes, panel: dict[str, Any], results: Results) -> None:
    lines = [line for lines in results for line in lines]
    colors = _fixed_colors(panel)
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    if custom.get("stacking", {}).get("mode") == "normal":
        _draw_stack(axes, lines, colors)
    else:
        for line in lines:
            axes.plot(line.times, line.values, lw=1.3, label=line.name, color=colors.get(line.name))
    axes.yaxis.set_major_formatter(_formatter(panel))
    _set_time_axis(axes)
    axes.set_ylim(bottom=0, top=None if any(map(_largest, lines)) else 1)
    _draw_legend(axes, lines)


def _draw_legend(axes: Axes, lines: Sequence[Line]) -> None:
    """List the visible series, or all if none is, in descending order of their maximum."""
    handles, names = axes.get_legend_handles_labels()
    largest = {line.name: _largest(line) for line in lines}
    order = sorted(range(len(names)), key=lambda index: -largest[names[index]])
    visible = [index for index in order if largest[names[index]] > 0]
    shown = (visible or order)[:_MAX_LEGEND]
    axes.legend(
        [handles[index] for index in shown],
        [names[index] for index in shown],
        fontsize=7,
        ncols=3,
        handlelength=1,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(-0.06, -0.19 * _DPI / axes.get_window_extent().height),
        columnspacing=1,
    )


def _draw_no_value(axes: Axes, panel: dict[str, Any], _: Results) -> None:
    text = panel["fieldConfig"]["defaults"].get("noValue", "no data")
    axes.axis("off")
    axes.text(0, 0.8, text, color="#888888", transform=axes.transAxes)


def _draw_stack(axes: Axes, lines: Sequence[Line], colors: dict[str, str]) -> None:
    times = sorted({moment for line in lines for moment in line.times})
    layers = []
    for line in lines:
        at = dict(zip(line.times, line.values, strict=True))
        layers.append([_number(at.get(moment, 0.0)) for moment in times])
    axes.stackplot(
        times,
        layers,
        labels=[line.name for line in lines],
        colors=[colors.get(line.name, "#999999") for line in lines],
    )


def _draw_heatmap(axes: Axes, panel: dict[str, Any], results: Results) -> None:
    lines = sorted(results[0], key=lambda line: float(line.labels["le"]))
    times = sorted({moment for line in lines for moment in line.times})
    below = [0.0] * len(times)
    cells = []
    for line in lines:
        at = dict(zip(line.times, line.values, strict=True))
        upto = [_number(at.get(moment, 0.0)) for moment in times]
        cells.append([max(0.0, up - low) or math.nan for up, low in zip(upto, below, strict=True)])
        below = upto
    axes.pcolormesh(times, range(len(lines)), cells, shading="nearest", cmap="viridis_r")
    axes.set_yticks(range(len(lines)), [f"{line.labels['le']} s" for line in lines], fontsize=6)
    axes.grid(visible=False)
    _set_time_axis(axes)


def _draw_bars(axes: Axes, panel: dict[str, Any], results: Results) -> None:
    """Draw the latest values as horizontal bars, the largest on top."""
    lines = [line for lines in results for line in lines]
    lines = sorted(lines, key=lambda line: -_number(line.values[-1]))[:_MAX_ROWS]
    axes.barh(range(len(lines)), [line.values[-1] for line in lines], height=0.25, color="#5794f2")
    axes.set_yticks([])
    for row, line in enumerate(lines):
        text = f"{line.name}: {_formatter(panel)(line.values[-1], None)}"
        axes.text(0, row - 0.38, text, fontsize=7, va="center")
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(_formatter(panel))


def _draw_stats(axes: Axes, panel: dict[str, Any], results: Results) -> None:
    """Draw the latest values side by side, on the color of their threshold."""
    axes.axis("off")
    lines = [line for lines in results for line in lines]
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    for number, line in enumerate(lines):
        x, value = number / len(lines), line.values[-1]
        reached = [step["color"] for step in steps if value >= (step["value"] or -math.inf)]
        color = _COLORS.get(reached[-1] if reached else "", "#8e8e8e")
        axes.axvspan(x, x + 0.97 / len(lines), color=color, lw=0)
        write = partial(axes.text, x + 0.485 / len(lines), ha="center", color="white")
        write(0.45, _formatter(panel)(value, None), size=15, weight="bold")
        write(0.15, line.name, size=8)
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _draw_table(axes: Axes, panel: dict[str, Any], results: Results) -> None:
    """List the latest values under the headings of the table, the largest first."""
    axes.axis("off")
    organize = next(each for each in panel["transformations"] if each["id"] == "organize")
    order, headings = organize["options"]["indexByName"], organize["options"]["renameByName"]
    columns = sorted(order, key=order.get)
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    for target, lines in zip(panel["targets"], results, strict=True):
        field = f"Value #{target['refId']}" if len(results) > 1 else "Value"
        for line in lines:
            key = tuple(line.labels.get(name, "")[:_MAX_CELL] for name in columns)
            rows.setdefault(key, {})[field] = line.values[-1]
    largest = sorted(rows, key=lambda key: -max(map(_number, rows[key].values())))[:_MAX_ROWS]
    cells = [[headings[name] for name in columns]]
    for key in largest:
        labels = zip(key, columns, strict=True)
        cells.append([label or _cell(panel, rows[key], name) for label, name in labels])
    _write_columns(axes, [list(column) for column in zip(*cells, strict=True) if any(column[1:])])


def _write_columns(axes: Axes, columns: list[list[str]]) -> None:
    """Write the columns of a table, each with its heading, as wide as their longest text."""
    size = axes.get_window_extent()
    chars = size.width / _DPI * _CHARS_PER_IN
    widths = [max(map(len, column)) + 2 for column in columns]
    scale = max(1, min(chars / sum(widths), 2.2))
    step = min(_LINE_IN * _DPI / size.height, 1 / len(columns[0]))
    write = partial(axes.text, size=7.5, va="center", transform=axes.transAxes)
    for number, column in enumerate(columns):
        x = sum(widths[:number]) * scale / max(chars, sum(widths))
        for row, text in enumerate(column):
            write(x, 1 - (row + 0.5) * step, text, weight="normal" if row else "bold")


def _cell(panel: dict[str, Any], values: dict[str, float], name: str) -> str:
    """Return a value as a table shows it, or an empty text for a label."""
    value = values.get(name)
    if value is None:
        return "-" if name.startswith("Value") else ""
    for mapping in panel["fieldConfig"]["defaults"].get("mappings", ()):
        if f"{value:g}" in mapping["options"]:
            return str(mapping["options"][f"{value:g}"]["text"])
    return str(_formatter(panel)(value, None))


_WITH_LEGEND = ("timeseries", "heatmap", "bargauge", "state-timeline")
_DRAW: dict[str, Callable[[Axes, dict[str, Any], Results], None]] = {
    "timeseries": _draw_series,
    "heatmap": _draw_heatmap,
    "bargauge": _draw_bars,
    "stat": _draw_stats,
    "state-timeline": _draw_series,
    "table": _draw_table,
}


def _fixed_colors(panel: dict[str, Any]) -> dict[str, str]:
    """Return the colors that the panel sets, by the name of the series."""
    return {
        override["matcher"]["options"]: each["value"]["fixedColor"]
        for override in panel["fieldConfig"].get("overrides", ())
        for each in override["properties"]
        if each["id"] == "color"
    }


def _set_time_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda moment, _: time.strftime("%H:%M:%S", time.gmtime(moment)))
    )


def _formatter(panel: dict[str, Any]) -> FuncFormatter:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    return FuncFormatter(lambda value, _: _format(value, unit))


def _format(value: float, unit: str) -> str:
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        return f"{value:.3g} s" if abs(value) >= 1 or not value else f"{value * 1e3:.3g} ms"
    factor, prefix = next((pair for pair in _PREFIXES if abs(value) >= pair[0]), _PREFIXES[-1])
    suffix = {"reqps": "/s", "bytes": "B", "Bps": "B/s"}.get(unit, "")
    return f"{value / factor:.3g} {prefix}{suffix}".strip()


def _number(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _largest(line: Line) -> float:
    return max(map(_number, line.values))


def pages(
    prometheus: PrometheusServer, window: Window, folder: Path, names: Iterable[str]
) -> list[Path]:
    """Draw several dashboards into a folder, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"dashboard-{name.lower()}.png" for name in names}
    for name, path in paths.items():
        draw(prometheus, name, window, path)
    return list(paths.values())
