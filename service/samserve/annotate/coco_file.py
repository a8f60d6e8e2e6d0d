"""The COCO file of a run: the records of its images, read again one at a time."""

from __future__ import annotations

from collections.abc import Iterable

from samserve.annotate.outputs import Output
from samserve.annotate.records import Records
from samserve.datasets.coco.writing import coco_writer
from samserve.datasets.types import Category

FILE = "annotations.json"


def write_coco(url: str, names: Iterable[str], categories: tuple[Category, ...] = ()) -> int:
    """Write ``annotations.json`` below an output, of the images *names*; return their number.

    Images without a record are left out.  Blocks.  Raises ``OSError``, and
    `samserve.errors.InvalidRequest` for a record that is not valid.
    """
    records = Records(url)
    count = 0
    with Output(url).replacing(FILE) as path, coco_writer(path, categories) as writer:
        for name in names:
            record = records.read(name)
            if record is not None:
                writer.add(record)
                count += 1
    return count
