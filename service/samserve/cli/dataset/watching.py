"""Progress while the images of a data set are read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace

from samserve.cli.progress import record_progress
from samserve.datasets.types import DataSet, ImageRecord


@dataclass(frozen=True, slots=True)
class _Watched:
    """Images that are counted; iterators continue after one that is not valid, as those of these.

    A second iteration counts from the beginning.
    """

    images: Iterable[ImageRecord]
    update: Callable[[int], None]

    def __iter__(self) -> Iterator[ImageRecord]:
        numbers = itertools.count(1)

        def counted(record: ImageRecord) -> ImageRecord:
            self.update(next(numbers))
            return record

        return map(counted, self.images)


@contextmanager
def watched(data: DataSet, text: str) -> Iterator[DataSet]:
    """Yield the data set; while it is iterated over, the number of images is shown."""
    total = len(data.images) if isinstance(data.images, Sized) else None
    with record_progress(text, total) as update:
        yield replace(data, images=_Watched(data.images, update))
