"""Which image of a data set is which image of a source."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from samserve.datasets.types import ImageRecord
from samserve.errors import InvalidRequest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Matched(Generic[T]):
    """What was read of a data set by the names of the images; ``others`` counts its other images.

    An image whose file name is ambiguous is among the others.
    """

    values: dict[str, T]
    others: int


def match(
    records: Iterable[ImageRecord], names: Iterable[str], read: Callable[[ImageRecord], T]
) -> Matched[T]:
    """Read the records of the images *names*, one at a time, and keep what *read* returns.

    A record belongs to the image with its relative path; if there is none, to the image with the
    same file name in another folder, provided that both are the only ones with it.  Raises
    `samserve.errors.InvalidRequest` for two records of one path, and what *read* and the iteration
    raise.
    """
    paths = set(names)
    bases = Counter(_base(name) for name in paths)
    exact: dict[str, T] = {}
    by_base: defaultdict[str, list[T]] = defaultdict(list)
    count = 0
    for record in records:
        count += 1
        name = _path(record.file_name)
        if name in exact:
            raise InvalidRequest(name, "is the file_name of two images of the data set")
        if name in paths:
            exact[name] = read(record)
        elif bases[_base(name)] == 1:
            by_base[_base(name)].append(read(record))
    unique = {base: found[0] for base, found in by_base.items() if len(found) == 1}
    moved = {name: unique[_base(name)] for name in paths - set(exact) if _base(name) in unique}
    values = exact | moved
    return Matched(values, count - len(values))


def _path(file_name: str) -> str:
    return file_name.replace("\\", "/").removeprefix("./")


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]
