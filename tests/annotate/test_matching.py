"""Images of a data set are found in a source by path, or by a file name that is unique."""

from __future__ import annotations

import pytest
from samserve.annotate.matching import match
from samserve.datasets.types import ImageRecord
from samserve.errors import InvalidRequest
from samserve.types import Size


def records(*names: str) -> list[ImageRecord]:
    return [ImageRecord(name, Size(4, 4), ()) for name in names]


def matched(data: list[str], source: list[str]) -> dict[str, str]:
    return match(records(*data), source, lambda record: record.file_name).values


@pytest.mark.parametrize(
    ("data", "source", "expected"),
    [
        (["a/1.jpg"], ["a/1.jpg", "b/1.jpg"], {"a/1.jpg": "a/1.jpg"}),
        (["1.jpg"], ["a/1.jpg"], {"a/1.jpg": "1.jpg"}),
        (["train/1.jpg"], ["1.jpg"], {"1.jpg": "train/1.jpg"}),
        (["./a/1.jpg", "b\\2.jpg"], ["a/1.jpg", "b/2.jpg"], None),
        # Ambiguous in the source, and in the data set.
        (["1.jpg"], ["a/1.jpg", "b/1.jpg"], {}),
        (["x/1.jpg", "y/1.jpg"], ["1.jpg"], {}),
        # The path is more than the name.
        (["x/1.jpg", "1.jpg"], ["1.jpg"], {"1.jpg": "1.jpg"}),
        (["1.jpg", "x/1.jpg"], ["1.jpg"], {"1.jpg": "1.jpg"}),
        (["2.jpg"], ["1.jpg"], {}),
    ],
)
def test_images_are_matched_by_path_or_unique_file_name(
    data: list[str], source: list[str], expected: dict[str, str] | None
) -> None:
    if expected is None:
        expected = dict(zip(source, data, strict=True))
    found = match(records(*data), source, lambda record: record.file_name)

    assert found.values == expected
    assert found.others == len(data) - len(expected)


def test_only_images_of_the_source_are_read() -> None:
    read: list[str] = []
    data = records("a.jpg", "b.jpg", "c.jpg")

    match(data, ["b.jpg"], lambda record: read.append(record.file_name))

    assert read == ["b.jpg"]


def test_two_records_of_an_image_are_rejected() -> None:
    with pytest.raises(InvalidRequest, match=r"a.jpg: is the file_name of two images"):
        matched(["a.jpg", "./a.jpg"], ["a.jpg"])
