"""The plot of a run: losses by step, and the figures before and after."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from samserve.tuning.evaluation import Figures


def write_curve(
    path: Path, losses: Sequence[Mapping[str, float]], before: Figures, after: Figures
) -> bool:
    """Write a PNG, and return whether matplotlib is installed, which draws it."""
    try:
        backend = importlib.import_module("matplotlib.backends.backend_agg")
        figures = importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError:
        return False
    figure = figures.Figure(figsize=(9, 3.5), layout="constrained")
    backend.FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    for name in ("first loss", "corrected loss"):
        rows = [row for row in losses if name in row]
        left.plot([row["step"] for row in rows], [row[name] for row in rows], label=name)
    left.set_xlabel("step")
    left.set_ylabel("loss")
    left.legend()
    names = ("one click", "box")
    for offset, label, each in ((-0.2, "before", before), (0.2, "after", after)):
        values = (each.click_iou, each.box_iou)
        right.bar([place + offset for place in range(2)], values, 0.4, label=label)
    right.set_xticks(range(2), names)
    right.set_ylim(0, 1)
    right.set_ylabel("mean IoU, held-out part")
    right.legend()
    figure.savefig(path, dpi=120)
    return True
