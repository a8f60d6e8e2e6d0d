"""Tasks of Label Studio, as we write them and as Label Studio exports them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from samserve.core import run_lengths
from samserve.datasets.formats import WriteOptions
from samserve.datasets.label_studio.reading import read
from samserve.datasets.label_studio.writing import write_folder
from samserve.datasets.types import Annotation, DataSet, ImageRecord, Xywh
from samserve.types import Size

from tests.datasets.tool_records import CATEGORIES

SIZE = Size(20, 30)
SQUARE: Xywh = (4.0, 2.0, 10.0, 8.0)


def disc(size: Size = SIZE, radius: float = 6.0) -> np.ndarray:
    rows, columns = np.mgrid[: size.height, : size.width]
    found: np.ndarray = np.hypot(rows - size.height / 2, columns - size.width / 2) < radius
    return found


def annotation(**changes: Any) -> Annotation:
    made = Annotation(run_lengths.encode(disc()), category_id=3, score=0.5)
    return replace(made, **changes)


def image(*annotations: Annotation, name: str = "a.jpg") -> ImageRecord:
    return ImageRecord(name, SIZE, annotations)


def written(folder: Path, *images: ImageRecord, **options: Any) -> list[dict[str, Any]]:
    """Write images, and return their tasks."""
    write_folder(DataSet(images, CATEGORIES), folder, WriteOptions(**options))
    found: list[dict[str, Any]] = json.loads((folder / "tasks.json").read_text())
    return found


def regions(task: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = task["predictions"][0]["result"]
    return found


def export(folder: Path, *tasks: dict[str, Any]) -> Path:
    path = folder / "project-1-at-2026-01-01.json"
    path.write_text(json.dumps(tasks))
    return path


def annotated(task: dict[str, Any], *annotations: dict[str, Any]) -> dict[str, Any]:
    """Return a task as Label Studio exports it after annotators have submitted."""
    kept = {"id": 1, "data": task["data"], "predictions": [17]}
    return {**kept, "annotations": list(annotations)}


def result_of(result: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    base = {"id": 1, "was_cancelled": False, "ground_truth": False, "parent_prediction": None}
    times = {"created_at": "2026-01-01T10:00:00.000000Z"}
    return {**base, **times, "result": result, **values}


def one(path: Path) -> Annotation:
    """Return the only annotation of a file."""
    (found,) = read(path).images
    (only,) = found.annotations
    return only
