"""`samserve dataset convert`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from samserve.cli.dataset.watching import watched
from samserve.cli.errors import CommandError, UsageError
from samserve.cli.progress import spinner
from samserve.cli.terminal import write_line, write_note
from samserve.datasets import reading
from samserve.datasets.formats import WriteOptions, Written
from samserve.datasets.types import DataSet
from samserve.errors import InvalidRequest

_MAX_VIOLATIONS = 5


@dataclass(frozen=True, slots=True)
class Source:
    """A data set on the command line; an empty format is to be found."""

    path: Path
    format: str
    images: Path | None

    def check(self) -> str:
        """Return the name of the format.  Raises `UsageError` if it is unknown, or missing."""
        try:
            if not self.format:
                return reading.identify(self.path).name
            chosen = reading.find_format(self.format).name
        except InvalidRequest as error:
            option = "--from" if self.format else "DATASET"
            raise UsageError(f"{option}: {error.message}") from error
        if not self.path.exists():
            raise UsageError(f"DATASET: {self.path}: does not exist")
        return chosen

    def open(self) -> DataSet:
        """Open the data set.  Raises `InvalidRequest` and ``OSError``."""
        # Of a COCO file, all is read.
        with spinner("reading the data set"):
            return reading.open_dataset(self.path, self.check(), self.images)

    def images_folder(self) -> reading.ImagesFolder | None:
        """Return the folder of the image files, None if that is unknown."""
        if self.images is not None and self.images.is_dir():
            return reading.ImagesFolder(self.images, complete=True)
        return reading.find_images(self.path)


def run(source: Source, to: str, out: Path, options: WriteOptions) -> None:
    """Convert a data set, and print the numbers and what is lost."""
    name = source.check()
    target = reading.find_format(to)
    write = target.write
    if write is None:
        raise UsageError(f"--to {to}: this format is only read")
    if out.exists():
        raise UsageError(f"--out {out}: exists already: name another one")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: {out.parent} is not a directory")
    images = options.images or reading.path_of(source.images_folder())
    try:
        with watched(source.open(), "converting") as data:
            written = write(data, out, replace(options, images=images))
    except InvalidRequest as error:
        raise CommandError(*lines_of(error)) from error
    _report(written, name, to)
    write_note(f"wrote {out}")


def lines_of(error: InvalidRequest) -> list[str]:
    """Return the first violations of an error, one line each."""
    shown = [": ".join(each) for each in error.violations[:_MAX_VIOLATIONS]]
    more = len(error.violations) - len(shown)
    return [*shown, f"and {more} more"] if more else shown


def _report(written: Written, source: str, target: str) -> None:
    write_line(f"images: {written.images}\nannotations: {written.annotations}")
    for text, number in written.notes.most_common():
        counted = f"{number} {_agreeing(text, number)}" if number else text
        write_note(f"{source} to {target}: {counted}")


def _agreeing(text: str, number: int) -> str:
    """Return a text about annotations, such as "have scores", for a number of them."""
    if number != 1:
        return f"annotations {text}"
    singular = {"have": "has", "are": "is"}
    return " ".join(["annotation", *(singular.get(word, word) for word in text.split(" "))])
