"""What a format holds comes back from it unchanged."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from samserve.datasets import coco, pixels, reading, sa1b, yolo
from samserve.datasets.formats import Format, SegmentationKind, WriteOptions
from samserve.datasets.types import Annotation, Category, DataSet, ImageRecord, Polygons
from samserve.types import CocoRle

from tests.datasets.sets import CATEGORIES, data_sets, photo
from tests.support.examples import examples

POLYGONS = WriteOptions(SegmentationKind.POLYGONS)


@contextmanager
def copied(
    data: DataSet, *formats: Format, options: WriteOptions | None = None
) -> Iterator[DataSet]:
    """Write a data set in one format after another, and yield what is read at the end."""
    with tempfile.TemporaryDirectory() as folder:
        for number, each in enumerate(formats):
            path = Path(folder, str(number))
            assert each.write is not None
            each.write(data, path, options or WriteOptions())
            data = reading.open_dataset(path)
        yield data


def without_metadata(data: DataSet) -> list[ImageRecord]:
    return [replace(record, metadata={}) for record in data.images]


@examples(80)
@given(data_sets())
def test_records_hold_everything(data: DataSet) -> None:
    with copied(data, sa1b.FORMAT) as found:
        assert sorted(found.images, key=name) == sorted(data.images, key=name)
        assert found.categories == data.categories


@examples(80)
@given(data_sets())
def test_coco_files_hold_everything_but_the_notes_of_records(data: DataSet) -> None:
    with copied(data, coco.FORMAT) as found:
        assert list(found.images) == without_metadata(data)
        assert list(found.images) == list(found.images)
        assert found.categories == data.categories


@examples(40)
@given(data_sets())
def test_formats_without_loss_can_follow_each_other(data: DataSet) -> None:
    with copied(data, sa1b.FORMAT, coco.FORMAT, sa1b.FORMAT, coco.FORMAT) as found:
        assert sorted(found.images, key=name) == sorted(without_metadata(data), key=name)
        assert found.categories == data.categories


@examples(60)
@given(data_sets())
def test_polygons_of_coco_files_have_the_same_pixels(data: DataSet) -> None:
    with copied(data, coco.FORMAT, options=POLYGONS) as found:
        kinds = set()
        for record, original in zip(found.images, without_metadata(data), strict=True):
            kinds |= {type(each.segmentation) for each in record.annotations if not each.iscrowd}
            assert filled(record) == filled(original)
        assert kinds <= {Polygons, type(None), CocoRle}


@examples(30)
@given(data_sets(), st.sampled_from(["", "test"]))
def test_yolo_holds_names_classes_and_pixels(data: DataSet, split: str) -> None:
    records = [
        replace(
            record,
            file_name=f"{split}/{record.file_name}".removeprefix("/"),
            attributes={"split": split} if split else {},
            annotations=tuple(map(solid, record.annotations)),
        )
        for record in data.images
    ]
    with tempfile.TemporaryDirectory() as folder:
        for record in records:
            photo(Path(folder, record.file_name), record.size)
        options = WriteOptions(images=Path(folder))
        with copied(DataSet(records, CATEGORIES), yolo.FORMAT, options=options) as found:
            classes = {each.id: index for index, each in enumerate(found.categories)}
            names = [Category(index, each.name) for index, each in enumerate(by_id(CATEGORIES))]
            assert list(found.categories) == names
            expected = [kept(record, list(map(id_of, by_id(CATEGORIES)))) for record in records]
            assert classes.keys() == {0, 1, 2}
            assert [shown(each) for each in found.images] == sorted(expected)


def name(record: ImageRecord) -> list[str]:
    return record.file_name.split("/")


def id_of(category: Category) -> int:
    return category.id


def by_id(categories: tuple[Category, ...]) -> list[Category]:
    return sorted(categories, key=id_of)


def filled(record: ImageRecord) -> ImageRecord:
    """Return a record whose pixels are run lengths, which all have their area."""
    return replace(record, annotations=tuple(solid(each, record) for each in record.annotations))


def solid(annotation: Annotation, record: ImageRecord | None = None) -> Annotation:
    if annotation.segmentation is None:
        return replace(annotation, box=(0.0, 0.0, 1.0, 1.0)) if record is None else annotation
    if record is None:
        return annotation
    mask = pixels.to_rle(annotation.segmentation, record.size)
    area = pixels.extent_of(mask, record.size).area if annotation.area is None else annotation.area
    return replace(annotation, segmentation=mask, area=area)


def kept(record: ImageRecord, classes: list[int]) -> tuple[object, ...]:
    """Return what YOLO keeps of a record: no crowds, no empty masks, boxes beside masks filled."""
    rows = []
    alone = all(each.segmentation is None for each in record.annotations)
    for each in record.annotations:
        if each.iscrowd or each.category_id is None:
            continue
        number = classes.index(each.category_id)
        if each.segmentation is not None:
            mask = each.segmentation
            assert isinstance(mask, CocoRle)
            if pixels.extent_of(mask, record.size).area:
                rows.append((number, mask.counts))
        elif alone:
            rows.append((number, "box"))
        else:
            ring = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
            rows.append((number, pixels.to_rle(Polygons(((ring,),)), record.size).counts))
    return name(record), record.size.height, record.size.width, record.attributes, rows


def shown(record: ImageRecord) -> tuple[object, ...]:
    rows = [
        (
            each.category_id,
            "box"
            if each.segmentation is None
            else pixels.to_rle(each.segmentation, record.size).counts,
        )
        for each in record.annotations
    ]
    return name(record), record.size.height, record.size.width, record.attributes, rows
