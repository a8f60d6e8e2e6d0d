"""`samserve dataset show`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from samserve.cli import files
from samserve.cli.dataset.convert import Source, lines_of
from samserve.cli.dataset.sheet import Sheet
from samserve.cli.errors import CommandError
from samserve.cli.terminal import write_note
from samserve.datasets.reading import path_of
from samserve.datasets.types import DataSet, ImageRecord
from samserve.errors import InvalidRequest

_SUFFIXES = (".png", ".jpg", ".webp", ".jpeg")


def run(source: Source, out: Path, *, columns: int, limit: int) -> None:
    """Draw the first images of a data set."""
    files.check_output("--out", out, _SUFFIXES)
    source.check()
    folder = source.images_folder()
    try:
        data = source.open()
        sheet = Sheet(data.categories, path_of(folder), columns)
        for record in itertools.islice(_records(data), limit):
            sheet.add(record)
    except InvalidRequest as error:
        raise CommandError(*lines_of(error)) from error
    if sheet.without_image:
        text = "" if folder else ": --images DIR names their folder"
        without = sheet.without_image
        subject = "1 image is" if without == 1 else f"{without} images are"
        write_note(f"{subject} drawn without a readable file of its size{text}")
    files.write_image(sheet.draw(), out)


def _records(data: DataSet) -> Iterator[ImageRecord]:
    """Yield the images that are valid."""
    records = iter(data.images)
    while True:
        try:
            yield next(records)
        except StopIteration:
            return
        except InvalidRequest as error:
            write_note(f"left out: {error.message}")
