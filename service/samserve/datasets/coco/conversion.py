"""Writes a data set as a COCO file."""

from __future__ import annotations

from pathlib import Path

from samserve.datasets.categories import DEFAULT_NAME
from samserve.datasets.coco.writing import CocoOptions, IdsNotUnique, coco_writer
from samserve.datasets.formats import SegmentationKind, WriteOptions, Written
from samserve.datasets.types import DataSet, ImageRecord, Polygons


def write(data: DataSet, out: Path, options: WriteOptions) -> Written:
    """Write a COCO file with the ids of the data set, or numbers if these are not unique.

    Raises `InvalidRequest` for what cannot be read or written, and ``OSError``.
    """
    try:
        return _write(data, out, options, keep_ids=True)
    except IdsNotUnique as error:
        found = error.violations[0]
        written = _write(data, out, options, keep_ids=False)
        written.remark(f"ids are numbered from 1: {found.field}: {found.description}")
        return written


def _write(data: DataSet, out: Path, options: WriteOptions, *, keep_ids: bool) -> Written:
    made = CocoOptions(options.segmentation, options.tolerance, keep_ids, data.attributes)
    written = Written()
    with coco_writer(out, data.categories, made) as writer:
        for record in data.images:
            writer.add(record)
            written.images += 1
            written.annotations += len(record.annotations)
            _count(record, options, written)
    text = f"had no category, and are of the category {DEFAULT_NAME!r}"
    written.count(text, writer.without_category)
    return written


def _count(record: ImageRecord, options: WriteOptions, written: Written) -> None:
    """Count the annotations that are not written as they are."""
    for each in record.annotations:
        filled = options.segmentation is SegmentationKind.RLE or each.iscrowd
        if isinstance(each.segmentation, Polygons):
            holes = any(len(part) > 1 for part in each.segmentation.parts)
            written.count("had polygons, which were filled", filled)
            written.count("have holes, joined by bridges", holes and not filled)
        elif each.segmentation is not None and not filled and options.segmentation is not None:
            text = f"became polygons, up to {options.tolerance:g} pixels from the outline"
            written.count(text, options.tolerance > 0)
