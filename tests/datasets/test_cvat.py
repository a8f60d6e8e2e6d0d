"""CVAT's XML: written and read again, and as its documentation and its code write it."""

from __future__ import annotations

import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from samserve.core import run_lengths
from samserve.datasets.cvat import masks
from samserve.datasets.cvat.reading import read, recognises
from samserve.datasets.cvat.writing import write_file
from samserve.datasets.formats import SegmentationKind, WriteOptions
from samserve.datasets.types import Annotation, DataSet, ImageRecord, Origin, Polygons
from samserve.errors import InvalidRequest
from samserve.types import Size

from tests.datasets.tool_records import CATEGORIES, facts, has_pixels, mask_of, records
from tests.support.examples import examples

# By hand after the documentation of the format, https://docs.cvat.ai/docs/manual/advanced/xml_format,
# with the attributes that dump_as_cvat_annotation of CVAT 2 writes.
EXPORT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <job>
      <id>12</id>
      <size>2</size>
      <mode>annotation</mode>
      <labels>
        <label>
          <name>car</name>
          <color>#ff0000</color>
          <type>any</type>
          <attributes>
            <attribute>
              <name>colour</name>
              <mutable>False</mutable>
              <input_type>text</input_type>
            </attribute>
          </attributes>
        </label>
        <label><name>road</name><color>#00ff00</color><type>any</type><attributes/></label>
      </labels>
    </job>
    <dumped>2026-01-01 10:00:00.000000+00:00</dumped>
  </meta>
  <image id="0" name="street/1.jpg" subset="train" task_id="3" width="12" height="10">
    <mask label="car" source="semi-auto" occluded="0" rle="1, 2, 2, 1" left="3" top="4" width="3" \
height="2" z_order="2">
      <attribute name="colour">red</attribute>
    </mask>
    <polygon label="road" source="manual" occluded="1" points="0.00,0.00;4.00,0.00;4.00,3.00" \
z_order="0" group_id="5">
    </polygon>
    <polygon label="road" source="manual" occluded="1" points="6.00,6.00;10.00,6.00;10.00,9.00" \
z_order="0" group_id="5">
    </polygon>
    <box label="car" source="file" occluded="0" xtl="1.00" ytl="2.00" xbr="5.00" ybr="4.00" \
z_order="0">
    </box>
    <box label="car" source="auto" occluded="0" xtl="2.00" ytl="2.00" xbr="6.00" ybr="4.00" \
rotation="90.00" z_order="0">
    </box>
    <ellipse label="car" source="manual" occluded="0" cx="6.00" cy="5.00" rx="4.00" ry="3.00" \
z_order="0">
    </ellipse>
    <polyline label="road" source="manual" occluded="0" points="1.00,1.00;2.00,2.00" z_order="0">
    </polyline>
    <skeleton label="car" source="manual" z_order="0">
      <points label="1" source="manual" outside="0" occluded="0" points="1.00,1.00"></points>
    </skeleton>
    <tag label="car" source="manual"></tag>
  </image>
  <image id="1" name="street/2.jpg" width="12" height="10">
  </image>
</annotations>
"""
SIZE = Size(10, 12)


def file_of(folder: Path, text: str = EXPORT) -> Path:
    path = folder / "annotations.xml"
    path.write_text(text, "utf-8")
    return path


def cvat_runs(mask: np.ndarray) -> list[int]:
    """Return run lengths as CVAT's own code makes them of a mask in its box.

    Source: cvat/apps/dataset_manager/formats/transformations.py MaskConverter.rle.
    """
    values = mask.reshape(-1)
    runs = np.diff(np.flatnonzero(values[1:] != values[:-1]), prepend=-1, append=len(values) - 1)
    return [0, *runs.tolist()] if values[0] else list(runs.tolist())


@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
@examples(400)
def test_masks_are_those_of_cvat(mask: np.ndarray) -> None:
    made = masks.from_rle(run_lengths.encode(mask))

    if not mask.any():
        assert made is None
        return
    assert made is not None
    rows, columns = np.nonzero(mask)
    tight = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert (made.left, made.top) == (columns.min(), rows.min())
    assert made.size == Size(*tight.shape)
    assert list(made.runs) == cvat_runs(tight)
    back = masks.to_rle(made, Size(*mask.shape))
    np.testing.assert_array_equal(run_lengths.decode(back), mask)


@given(
    arrays.arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 6))),
    st.integers(-4, 8),
    st.integers(-4, 8),
)
@examples(200)
def test_masks_beyond_the_image_are_cut(mask: np.ndarray, left: int, top: int) -> None:
    boxed = masks.BoxedMask(tuple(cvat_runs(mask)), left, top, Size(*mask.shape))

    found = run_lengths.decode(masks.to_rle(boxed, SIZE))

    framed = np.zeros((30, 30), bool)
    framed[10 + top : 10 + top + mask.shape[0], 10 + left : 10 + left + mask.shape[1]] = mask
    np.testing.assert_array_equal(found, framed[10:20, 10:22])


@given(records())
@examples(150)
def test_round_trip_keeps_pixels_labels_scores_and_origins(images: list[ImageRecord]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "out.xml")
        write_file(DataSet(images, CATEGORIES), path, WriteOptions())
        assert recognises(path)
        back = read(path)
        found = list(back.images)

    assert [each.name for each in back.categories][:3] == [each.name for each in CATEGORIES]
    assert [(each.file_name, each.size) for each in found] == [
        (each.file_name, each.size) for each in images
    ]
    for before, after in zip(images, found, strict=True):
        kept = [each for each in before.annotations if shape_is_kept(each, before.size)]
        for each, other in zip(kept, after.annotations, strict=True):
            # The group of parts is one of CVAT.
            attributes = {k: value for k, value in other.attributes.items() if k != "group_id"}
            plain = replace(other, attributes=attributes)
            assert facts(each, before.size, CATEGORIES) == facts(
                plain, before.size, back.categories
            )


def shape_is_kept(annotation: Annotation, size: Size) -> bool:
    """Return whether CVAT holds an annotation: polygons without pixels are shapes."""
    return isinstance(annotation.segmentation, Polygons) or has_pixels(annotation, size)


def test_export_is_read(tmp_path: Path) -> None:
    data = read(file_of(tmp_path))

    first, second = data.images

    assert [(each.id, each.name) for each in data.categories] == [(1, "car"), (2, "road")]
    assert (first.file_name, first.size) == ("street/1.jpg", SIZE)
    assert first.attributes == {"frame": 0, "subset": "train"}
    assert (second.file_name, second.annotations) == ("street/2.jpg", ())
    mask, road, box, turned, ellipse = first.annotations
    expected = np.zeros((10, 12), bool)
    expected[4, 4:6] = expected[5, 5] = True
    np.testing.assert_array_equal(mask_of(mask, SIZE), expected)
    assert (mask.origin, mask.category_id) == (Origin.CORRECTED, 1)
    assert mask.attributes == {"colour": "red", "z_order": 2}
    # Shapes of a group with one label are parts of one object.
    assert isinstance(road.segmentation, Polygons)
    assert road.segmentation.parts == (
        (((0.0, 0.0), (4.0, 0.0), (4.0, 3.0)),),
        (((6.0, 6.0), (10.0, 6.0), (10.0, 9.0)),),
    )
    assert (road.origin, road.attributes) == (Origin.ADDED, {"group_id": 5, "occluded": True})
    assert (box.segmentation, box.box, box.origin) == (None, (1, 2, 4, 2), Origin.ACCEPTED)
    assert turned.origin is Origin.PROPOSED
    assert isinstance(turned.segmentation, Polygons)
    ((ring,),) = turned.segmentation.parts
    # Around its centre.
    np.testing.assert_allclose(ring, [(5, 1), (5, 5), (3, 5), (3, 1)], atol=1e-9)
    assert int(mask_of(ellipse, SIZE).sum()) == pytest.approx(np.pi * 12, rel=0.1)


def test_archive_is_read(tmp_path: Path) -> None:
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.xml", EXPORT)
        archive.writestr("images/street/1.jpg", b"")

    assert recognises(path)
    assert list(read(path).images) == list(read(file_of(tmp_path)).images)


def test_other_files_are_not_recognised(tmp_path: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.yaml", "names: []")

    assert not recognises(path)
    assert not recognises(tmp_path)
    path.write_bytes(b"PK")
    assert not recognises(path)
    assert not recognises(file_of(tmp_path, "[]"))
    assert not recognises(file_of(tmp_path, "<svg/>"))


BOMB = """<?xml version="1.0"?>
<!DOCTYPE annotations [
  <!ENTITY a "aaaaaaaaaa">
  <!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
  <!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">
]>
<annotations><image id="0" name="&c;" width="1" height="1"/></annotations>
"""
EXTERNAL = """<?xml version="1.0"?>
<!DOCTYPE annotations [<!ENTITY file SYSTEM "file:///etc/passwd">]>
<annotations><image id="0" name="&file;" width="1" height="1"/></annotations>
"""
LINKED = '<!DOCTYPE annotations SYSTEM "http://127.0.0.1:1/a.dtd"><annotations/>'


@pytest.mark.parametrize("text", [BOMB, EXTERNAL, LINKED])
def test_document_types_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidRequest, match="has a document type, which is not supported"):
        list(read(file_of(tmp_path, text)).images)


def within_image(
    inside: str, attributes: str = 'id="0" name="a.jpg" width="12" height="10"'
) -> str:
    return f"<annotations><image {attributes}>{inside}</image></annotations>"


MASK = '<mask label="car" rle="{}" left="{}" top="0" width="2" height="2"/>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotations><image", "is not valid XML"),
        ("<other/>", "its root is not <annotations>"),
        ('<annotations><track id="0"/></annotations>', "has tracks: export it as"),
        (within_image("<a>" * 30), "is deeper than"),
        (within_image("", 'id="0" name="a.jpg" width="12"'), "height: is missing"),
        (within_image("", 'id="0" name="../a.jpg" width="1" height="1"'), "relative path"),
        (within_image(MASK.format("1,2", 0)), "mask 1: its rle does not sum to 4 pixels"),
        (within_image(MASK.format("5,-1", 0)), "does not sum to 4"),
        (within_image(MASK.format("4", "x")), "invalid literal"),
        (within_image('<mask label="car" rle="4"/>'), "has no left"),
        (within_image('<polygon label="car" points="1,1;2,2"/>'), "are not x,y of 3 corners"),
        (within_image('<polygon label="car" points="1,1;2,2;3"/>'), "are not x,y"),
        (within_image('<polygon label="car" points="1,1;2,2;3,nan"/>'), "not a number up to"),
        (within_image('<box label="car" xtl="1" ytl="1" xbr="2"/>'), "has no ybr"),
    ],
)
def test_what_is_not_valid_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        list(read(file_of(tmp_path, text)).images)


def test_iteration_continues_after_an_image_that_is_not_valid(tmp_path: Path) -> None:
    images = [
        within_image("", 'id="0" name="a.jpg" width="12" height="10"'),
        within_image("", 'id="1" name="b.jpg" width="x" height="10"'),
        within_image("", 'id="2" name="c.jpg" width="12" height="10"'),
    ]
    text = "".join(images).replace("</annotations><annotations>", "")
    iterator = iter(read(file_of(tmp_path, text)).images)

    assert next(iterator).file_name == "a.jpg"
    with pytest.raises(InvalidRequest, match=r"b\.jpg: width"):
        next(iterator)
    assert next(iterator).file_name == "c.jpg"


def written(folder: Path, *annotations: Annotation, **options: Any) -> list[Annotation]:
    path = folder / "out.xml"
    record = ImageRecord("a.jpg", SIZE, annotations)
    write_file(DataSet([record], CATEGORIES), path, WriteOptions(**options))
    (found,) = read(path).images
    return list(found.annotations)


def test_masks_are_written_as_polygons_if_wanted(tmp_path: Path) -> None:
    mask = np.zeros((10, 12), bool)
    mask[1:5, 1:5] = mask[1:3, 8:11] = True
    mask[2, 2] = False
    annotation = Annotation(run_lengths.encode(mask), category_id=3)

    (found,) = written(tmp_path, annotation, segmentation=SegmentationKind.POLYGONS)

    assert isinstance(found.segmentation, Polygons)
    assert len(found.segmentation.parts) == 2
    np.testing.assert_array_equal(mask_of(found, SIZE), mask)
    text = (tmp_path / "out.xml").read_text()
    assert text.count("<polygon ") == text.count('group_id="1"') == 2


def test_new_groups_are_none_that_exist(tmp_path: Path) -> None:
    triangle = ((0.0, 0.0), (4.0, 0.0), (4.0, 3.0))
    own = Annotation(Polygons(((triangle,),)), category_id=3, attributes={"group_id": 1})
    parts = Annotation(Polygons(((triangle,), (triangle,))), category_id=3)

    first, second = written(tmp_path, own, parts)

    assert (first.attributes["group_id"], second.attributes["group_id"]) == (1, 2)


@pytest.mark.parametrize("name", ["a\x00.jpg", "a\x1f.jpg", "a\udcff.jpg", "../a.jpg"])
def test_names_that_cannot_be_written_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "out.xml"

    with pytest.raises(InvalidRequest):
        write_file(DataSet([ImageRecord(name, SIZE, ())]), path, WriteOptions())

    assert not path.exists()


def test_what_cvat_does_not_hold_is_counted(tmp_path: Path) -> None:
    annotation = Annotation(None, id=4, box=(1, 1, 2, 2), attributes={"list": [1], "text": "x"})
    empty = Annotation(run_lengths.encode(np.zeros((10, 12), bool)))
    record = ImageRecord("a.jpg", SIZE, (annotation, empty))

    made = write_file(DataSet([record]), tmp_path / "out.xml", WriteOptions())

    assert (made.images, made.annotations) == (1, 1)
    assert dict(made.notes) == {
        "have no pixels, left out": 1,
        "have an id, not written": 1,
        "have other values, not written": 1,
    }
