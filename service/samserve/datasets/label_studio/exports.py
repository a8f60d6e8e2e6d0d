"""The tasks of a JSON file of Label Studio, and of each the annotation that counts.

Source: label_studio/data_export/serializers.py; label_studio_sdk/converter/converter.py
annotation_result_from_task, convert_to_json_min.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from samserve.datasets import json_files
from samserve.datasets.coco.scanning import Text
from samserve.datasets.validation import Id, Length, Model, Number, parse
from samserve.datasets.validation import Text as Str
from samserve.errors import InvalidRequest

# Keys of JSON-MIN that are of the annotation; all others are data, or regions of a control.
_OF_ANNOTATION = (
    *("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"),
)


# In the beginning of every export, where run lengths may be long.
_KEYS = (
    "data",
    "predictions",
    "annotations",
    "completions",
    "annotation_id",
    "rle",
    "original_width",
)


class RegionObject(Model):
    """A region, or a value of one, as it is in a ``result``."""

    id: Str | None = None
    type: Str
    value: dict[str, Any] = Field(default_factory=dict)
    from_name: Str = ""
    to_name: Str = ""
    original_width: Length | None = None
    original_height: Length | None = None
    origin: Str | None = None
    score: Number | None = None
    meta: dict[str, Any] | None = None
    item_index: Id | None = None


class ResultObject(Model):
    """An annotation or a prediction."""

    result: list[Any] | None = None
    id: Id | Str | None = None
    was_cancelled: bool | None = None
    skipped: bool | None = None
    ground_truth: bool | None = None
    parent_prediction: Id | None = None
    created_at: Str | None = None
    updated_at: Str | None = None

    def rank(self) -> tuple[bool, str, str]:
        """Return what orders annotations: ground truth, then the time of the last change."""
        return bool(self.ground_truth), self.updated_at or self.created_at or "", str(self.id or "")


class TaskObject(Model):
    """A task as Label Studio exports and imports it; ``predictions`` may be ids only."""

    data: dict[str, Any]
    id: Id | Str | None = None
    annotations: list[Any] | None = None
    completions: list[Any] | None = None
    predictions: list[Any] | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A task: its data, and the regions of an annotation, or of a prediction if there is none.

    Of JSON-MIN, ``has_origins`` is false.
    """

    place: str
    data: Mapping[str, Any]
    regions: tuple[RegionObject, ...]
    is_prediction: bool = False
    parent_prediction: bool = False
    has_origins: bool = True


def tasks(path: Path) -> Iterator[Task | InvalidRequest]:
    """Yield the tasks of a file; instead of one that is not valid, its error.

    Tasks that every annotator has skipped are left out.  Raises `InvalidRequest` for what is not
    a list in JSON, and ``OSError``.
    """
    # Those of one task of JSON-MIN, one for each annotation, are side by side.
    for _, group in itertools.groupby(_items(path), key=_task_key):
        number, values = _grouped(group)
        try:
            task = _task(values, f"{path}: task {number + 1}")
        except InvalidRequest as error:
            yield error
            continue
        if task is not None:
            yield task


def is_export(path: Path) -> bool:
    """Return whether a file begins as one with tasks does; not for an empty list."""
    head = json_files.head(path)
    return head.startswith("[") and any(f'"{key}"' in head for key in _KEYS)


def _items(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the items of a list in JSON with their numbers."""
    text = Text(path)
    for found in text.walk():
        if found.number is not None and not found.key:
            yield found.number, found.value
        elif found.key or found.value != []:
            raise InvalidRequest(text.place, "is not a list of tasks")


def _task_key(numbered: tuple[int, Any]) -> tuple[Any, ...]:
    number, value = numbered
    if _is_minimal(value) and isinstance(value.get("id"), int | str):
        return ("id", value["id"])
    return ("number", number)


def _grouped(group: Iterable[tuple[int, Any]]) -> tuple[int, list[Any]]:
    numbered = list(group)
    return numbered[0][0], [value for _, value in numbered]


def _is_minimal(value: Any) -> bool:
    return isinstance(value, dict) and "data" not in value and "annotation_id" in value


def _task(values: list[Any], place: str) -> Task | None:
    if _is_minimal(values[0]):
        newest = max(values, key=lambda each: (str(each.get("updated_at")), str(each.get("id"))))
        return _minimal(newest, place)
    found = parse(TaskObject, values[0], place)
    given = found.annotations if found.annotations is not None else found.completions
    made = [parse(ResultObject, each, f"{place}: annotations") for each in given or ()]
    submitted = [each for each in made if not (each.was_cancelled or each.skipped)]
    if submitted:
        chosen = max(submitted, key=ResultObject.rank)
        own = _regions(chosen.result, f"{place}: annotation {chosen.id}")
        return Task(place, found.data, own, parent_prediction=chosen.parent_prediction is not None)
    if made:
        return None
    known = [each for each in found.predictions or () if isinstance(each, dict)]
    predictions = [parse(ResultObject, each, f"{place}: predictions") for each in known]
    newest = max(predictions, key=ResultObject.rank, default=ResultObject())
    own = _regions(newest.result, f"{place}: predictions")
    return Task(place, found.data, own, is_prediction=True)


def _regions(result: list[Any] | None, place: str) -> tuple[RegionObject, ...]:
    return tuple(
        parse(RegionObject, each, f"{place}: result[{number}]")
        for number, each in enumerate(result or ())
    )


def _minimal(value: Mapping[str, Any], place: str) -> Task:
    """Return the task of a record of JSON-MIN, whose regions are those of its controls."""
    found: list[RegionObject] = []
    data: dict[str, Any] = {}
    for name, each in value.items():
        if _are_regions(each):
            for number, region in enumerate(each):
                made = {**region, "type": _kind(region), "from_name": name, "value": region}
                made.pop("id", None)
                found.append(parse(RegionObject, made, f"{place}: {name}[{number}]"))
        elif name not in _OF_ANNOTATION:
            data[name] = each
    return Task(place, data, tuple(found), has_origins=False)


def _are_regions(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, dict) and "original_width" in each for each in value)
    )


def _kind(region: Mapping[str, Any]) -> str:
    return next((key for key in region if key.endswith("labels")), "")
