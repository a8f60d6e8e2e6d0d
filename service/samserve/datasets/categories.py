"""Categories as JSON values, and the one of objects that have none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from samserve.datasets import objects
from samserve.datasets.types import Category
from samserve.datasets.validation import Id, Model, Text, parse
from samserve.errors import InvalidRequest

DEFAULT_NAME = "object"
"""The category of annotations without one, in formats that need one."""
_KEYS = frozenset({"id", "name", "supercategory", "attributes"})


class _CategoryObject(Model):
    id: Id
    name: Text
    supercategory: Text | None = None


def read_categories(value: Any, place: str) -> tuple[Category, ...]:
    """Return the categories of a JSON list.

    Raises `InvalidRequest` for what is not valid, and for an id that occurs twice.
    """
    if not isinstance(value, list):
        raise InvalidRequest(place, "must be a list")
    found: dict[int, Category] = {}
    for number, each in enumerate(value):
        read = parse(_CategoryObject, each, f"{place}[{number}]")
        if read.id in found:
            raise InvalidRequest(f"{place}[{number}]", f"the id {read.id} is used twice")
        category = Category(read.id, read.name, read.supercategory or "", read.extra())
        found[read.id] = category
    return tuple(found.values())


def categories_value(categories: Iterable[Category]) -> list[dict[str, Any]]:
    """Return categories as a JSON list."""
    return [
        {
            "id": each.id,
            "name": each.name,
            "supercategory": each.supercategory,
            **objects.keys(each.attributes, _KEYS),
        }
        for each in categories
    ]


def default(categories: Iterable[Category]) -> Category:
    """Return the category for annotations without one: the one of `DEFAULT_NAME`, or a new one."""
    known = list(categories)
    for each in known:
        if each.name == DEFAULT_NAME:
            return each
    return Category(max((each.id for each in known), default=0) + 1, DEFAULT_NAME)
