"""The plots of `docs/benchmarks.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import Comparison, Result

OURS = "samserve"
COLOURS = ("#2a7f8e", "#e0a030", "#b5473c", "#777777")
PARTS = ("automask", "predict")
"""Drawn as bars; `clicks` is drawn as distributions."""


def draw(results: Mapping[str, Result], folder: Path) -> None:
    """Write the plots of the parts that were measured."""
    # Ids and dates would change the files with every run.
    mpl.rcParams["svg.hashsalt"] = OURS
    units = {"automask": ("seconds", 1.0), "predict": ("ms", 1e3)}
    for part in PARTS:
        if part in results:
            figure, axes = _figure()
            _bars(axes, results[part].comparisons, *units[part])
            _save(figure, folder / f"benchmark-{part}.svg")
    if "clicks" in results:
        figure, axes = _figure()
        _distributions(axes, results["clicks"])
        _save(figure, folder / "benchmark-clicks.svg")


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def _bars(axes: Axes, comparisons: Sequence[Comparison], unit: str, factor: float) -> None:
    """Draw the medians of all sides for each operation, with the quartiles as lines."""
    operations = list(dict.fromkeys(each.operation for each in comparisons))
    sides = [OURS, *dict.fromkeys(each.baseline for each in comparisons)]
    width = 0.8 / len(sides)
    for index, side in enumerate(sides):
        places, heights, spreads = [], [], []
        for place, operation in enumerate(operations):
            seconds = _seconds(comparisons, operation, side)
            if seconds.size:
                middle, low, high = np.percentile(factor * seconds, (50, 25, 75))
                places.append(place + (index - (len(sides) - 1) / 2) * width)
                heights.append(middle)
                spreads.append((middle - low, high - middle))
        errors = np.array(spreads).T
        axes.bar(places, heights, width, yerr=errors, label=side, color=COLOURS[index])
    axes.set_xticks(range(len(operations)), [_lines(each) for each in operations])
    axes.set_ylabel(unit)


def _lines(operation: str) -> str:
    """Break the name of an operation into short lines."""
    return operation.replace(", ", "\n").replace(" of ", "\nof ")


def _seconds(comparisons: Sequence[Comparison], operation: str, side: str) -> np.ndarray:
    found = [each for each in comparisons if each.operation == operation]
    if side == OURS:
        costs = found[0].ours
    else:
        costs = [cost for each in found if each.baseline == side for cost in each.theirs]
    return np.array([each.wall_s for each in costs])


def _distributions(axes: Axes, result: Result) -> None:
    """Draw which share of the calls took longer than a time."""
    for colour, each in zip(COLOURS, result.latencies, strict=False):
        times = np.sort(each.values_ms)
        longer = 1 - np.arange(len(times)) / len(times)
        axes.step(times, longer, where="pre", label=each.name, color=colour)
    axes.set_yscale("log")
    axes.set_yticks([1, 0.1, 0.01], ["all", "10 %", "1 %"])
    axes.minorticks_off()
    axes.set_xlabel("ms from when the click was due")
    axes.set_ylabel("calls that took longer")
    axes.set_xlim(left=0)
