"""Pages of dashboards as PNG files, drawn from what a real Prometheus answers.

Not Grafana, which needs a server and a browser: the same panels in the same places, asking the
same, with matplotlib's looks.
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
_LEFT_IN, _TOP_IN = 0.62, 0.45
# Of the legend.
_BOTTOM_IN = 0.95
_DPI = 80
_STEPS = 120
_ROWS = 9
_NAMED = 9
_CELL_LENGTH = 24
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
_MULTIPLES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


@dataclass(frozen=True, slots=True)
class Window:
    """The time that is shown, in seconds since the epoch."""

    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Line:
    """A series as it is drawn: times in seconds since the epoch, values, and its name."""

    name: str
    labels: dict[str, str]
    times: list[float]
    values: list[float]


def draw(prometheus: PrometheusServer, page: str, window: Window, path: Path) -> None:
    """Draw the page whose title ends with *page*."""
    (dashboard,) = (each for each in dashboards() if each["title"].endswith(page))
    shown = sorted(panels(dashboard), key=lambda panel: (_y(panel), panel["gridPos"]["x"]))
    bottom = max(_y(panel) + panel["gridPos"]["h"] for panel in shown) + 1
    width, height = _COLUMNS * _CELL_IN[0], bottom * _CELL_IN[1]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=_DPI)
        figure.text(0.01, 1 - 0.22 / height, dashboard["title"], size=13, weight="bold", va="top")
        for panel in shown:
            axes = figure.add_axes(_place(panel["gridPos"], width, height))
            axes.set_title(panel["title"], pad=6, size=9 if panel["gridPos"]["w"] > 6 else 8)
            _KINDS[panel["type"]](axes, panel, _answers(prometheus, panel, window))
        figure.savefig(path)


def _y(panel: dict[str, Any]) -> int:
    y: int = panel["gridPos"]["y"]
    return y


def _place(grid: dict[str, int], width: float, height: float) -> tuple[float, float, float, float]:
    """Turn cells from the top left into a part of the figure from the bottom left."""
    left = grid["x"] * _CELL_IN[0] + _LEFT_IN
    top = grid["y"] * _CELL_IN[1] + _TOP_IN
    wide = grid["w"] * _CELL_IN[0] - _LEFT_IN - 0.15
    high = grid["h"] * _CELL_IN[1] - _BOTTOM_IN
    return left / width, 1 - (top + high) / height, wide / width, high / height


def _answers(
    prometheus: PrometheusServer, panel: dict[str, Any], window: Window
) -> list[list[Line]]:
    """Ask all that a panel asks, over the window; one list for each of its queries."""
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
    return Line(name.strip(), labels, times, [float(value) for _, value in series["values"]])


def _series(axes: Axes, panel: dict[str, Any], answers: list[list[Line]]) -> None:
    lines = [line for lines in answers for line in lines]
    if not lines:
        _nothing(axes)
        return
    colors = _colors(panel)
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    if custom.get("stacking", {}).get("mode") == "normal":
        _stack(axes, lines, colors)
    else:
        for line in lines:
            axes.plot(line.times, line.values, lw=1.3, label=line.name, color=colors.get(line.name))
    axes.yaxis.set_major_formatter(_formatter(panel))
    _times(axes)
    axes.set_ylim(bottom=0)
    _legend(axes, lines)


def _legend(axes: Axes, lines: Sequence[Line]) -> None:
    """Name those that can be seen, the largest first, under the panel."""
    handles, names = axes.get_legend_handles_labels()
    largest = {line.name: max(map(_number, line.values)) for line in lines}
    order = sorted(range(len(names)), key=lambda index: -largest[names[index]])
    shown = [index for index in order if largest[names[index]] > 0][:_NAMED]
    axes.legend(
        [handles[index] for index in shown],
        [names[index] for index in shown],
        fontsize=6,
        ncols=3,
        handlelength=1,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(-0.06, -0.12),
        columnspacing=1,
    )


def _nothing(axes: Axes) -> None:
    axes.axis("off")
    axes.text(0, 0.8, "no data", color="#888888", transform=axes.transAxes)


def _stack(axes: Axes, lines: Sequence[Line], colors: dict[str, str]) -> None:
    times = sorted({moment for line in lines for moment in line.times})
    if not times:
        return
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


def _heat(axes: Axes, panel: dict[str, Any], answers: list[list[Line]]) -> None:
    lines = sorted(answers[0], key=lambda line: float(line.labels["le"]))
    times = sorted({moment for line in lines for moment in line.times})
    below = [0.0] * len(times)
    cells = []
    for line in lines:
        at = dict(zip(line.times, line.values, strict=True))
        upto = [_number(at.get(moment, 0.0)) for moment in times]
        cells.append([max(0.0, up - low) or math.nan for up, low in zip(upto, below, strict=True)])
        below = upto
    axes.pcolormesh(times, range(len(lines)), cells, shading="nearest", cmap="viridis_r")
    axes.set_yticks(range(len(lines)), [line.labels["le"] for line in lines], fontsize=6)
    axes.grid(visible=False)
    _times(axes)


def _rows(axes: Axes, panel: dict[str, Any], answers: list[list[Line]]) -> None:
    """List the last values by name, or by the labels if no name is given; the largest first."""
    axes.axis("off")
    text = _formatter(panel)
    rows: dict[str, list[float]] = {}
    for line in (line for lines in answers for line in lines):
        shown = [v[:_CELL_LENGTH] for k, v in line.labels.items() if k not in _HIDDEN]
        named = panel["type"] != "table" and line.name
        rows.setdefault(named or "   ".join(shown), []).append(line.values[-1])
    if not rows:
        _nothing(axes)
    largest = sorted(rows, key=lambda name: -_number(rows[name][0]))[:_ROWS]
    for number, name in enumerate(largest):
        y = 1 - (number + 0.5) / max(len(largest), 3)
        write = partial(axes.text, size=7, va="center", transform=axes.transAxes)
        write(0, y, name)
        write(1, y, "   ".join(text(value, None) for value in rows[name]), ha="right")


_HIDDEN = ("__name__", "namespace", "job", "instance")
_KINDS: dict[str, Callable[[Axes, dict[str, Any], list[list[Line]]], None]] = {
    "timeseries": _series,
    "heatmap": _heat,
    "bargauge": _rows,
    "stat": _rows,
    "state-timeline": _series,
    "table": _rows,
}


def _colors(panel: dict[str, Any]) -> dict[str, str]:
    """Return the colors that the panel fixes, by the name of the series."""
    return {
        override["matcher"]["options"]: each["value"]["fixedColor"]
        for override in panel["fieldConfig"].get("overrides", ())
        for each in override["properties"]
        if each["id"] == "color"
    }


def _times(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda moment, _: time.strftime("%H:%M:%S", time.gmtime(moment)))
    )


def _formatter(panel: dict[str, Any]) -> FuncFormatter:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    return FuncFormatter(lambda value, _: _written(value, unit))


def _written(value: float, unit: str) -> str:
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        return f"{value:.3g} s" if abs(value) >= 1 or not value else f"{value * 1e3:.3g} ms"
    by, prefix = next((pair for pair in _MULTIPLES if abs(value) >= pair[0]), _MULTIPLES[-1])
    suffix = {"reqps": "/s", "bytes": "B", "Bps": "B/s"}.get(unit, "")
    return f"{value / by:.3g} {prefix}{suffix}".strip()


def _number(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def pages(
    prometheus: PrometheusServer, window: Window, folder: Path, names: Iterable[str]
) -> list[Path]:
    """Draw several pages into a folder, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name in names:
        path = folder / f"dashboard-{name.lower()}.png"
        draw(prometheus, name, window, path)
        files.append(path)
    return files
