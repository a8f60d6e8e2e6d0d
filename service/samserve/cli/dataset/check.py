"""`samserve dataset check`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from samserve.cli import files
from samserve.cli.dataset.convert import Source
from samserve.cli.dataset.watching import watched
from samserve.cli.errors import UsageError
from samserve.cli.terminal import STDOUT, json_line, write_line, write_note
from samserve.datasets.checking import Check, Finding, Problem
from samserve.datasets.reading import ImagesFolder
from samserve.errors import InvalidRequest

FOUND = 3
"""The exit code if something is wrong."""
_MAX_SHOWN = 100
_SUFFIXES = (".json", ".txt", ".xml", ".yaml", ".yml")
"""Of files that data sets consist of."""


def run(source: Source, as_json: str) -> None:
    """Check a data set; exit with `FOUND` if something is wrong."""
    files.check_outputs(None, as_json)
    source.check()
    _check_destination(source.path, as_json)
    counts: Counter[Problem] = Counter()
    images = source.images_folder()
    with _writer(as_json) as write:
        check = _Checked()
        for finding in check.findings(source, images):
            counts[finding.problem] += 1
            write(_record(finding))
            if counts.total() <= _MAX_SHOWN and as_json != STDOUT:
                write_line(_line(finding))
    if as_json != STDOUT:
        _summarise(check.check, counts, images)
    if counts:
        raise typer.Exit(FOUND)


def _check_destination(source: Path, as_json: str) -> None:
    """Raise `UsageError` if the findings would replace a file of the data set."""
    target = Path(as_json)
    if as_json in ("", STDOUT) or not target.exists():
        return
    inside = target.resolve().is_relative_to(source.resolve())
    if target.samefile(source) or (inside and target.suffix.lower() in _SUFFIXES):
        raise UsageError(f"--json {as_json}: is a file of the data set: name another one")


@dataclass(slots=True)
class _Checked:
    """The check of a data set; None until it is opened."""

    check: Check | None = None

    def findings(self, source: Source, images: ImagesFolder | None) -> Iterator[Finding]:
        """Yield the findings; a file that cannot be read at all is one, too."""
        try:
            opened = source.open()
        except InvalidRequest as error:
            yield from (Finding(Problem.INVALID, *each) for each in error.violations)
            return
        with watched(opened, "checking") as data:
            self.check = Check(data, images.path, images.complete) if images else Check(data)
            yield from self.check.findings()


def _line(finding: Finding) -> str:
    annotation = f": annotation {finding.annotation}" if finding.annotation else ""
    return " ".join(f"{finding.place}{annotation}: {finding.text}".split())


def _record(finding: Finding) -> dict[str, Any]:
    return {
        "problem": finding.problem.name.lower(),
        "place": finding.place,
        "annotation": finding.annotation or None,
        "text": finding.text,
    }


def _summarise(check: Check | None, counts: Counter[Problem], images: ImagesFolder | None) -> None:
    more = counts.total() - _MAX_SHOWN
    if more > 0:
        write_line(f"and {more} more: --json FILE has all of them")
    if check is not None:
        write_line(f"images: {check.images}\nannotations: {check.annotations}")
    for problem, number in sorted(counts.items(), key=lambda each: -each[1]):
        write_line(f"{problem.value}: {number}")
    if not counts:
        write_line("nothing found")
    if check is not None and images is None:
        write_note("the image files were not compared: --images DIR names their folder")


@contextmanager
def _writer(destination: str) -> Iterator[Callable[[object], object]]:
    """Yield the function that writes a record of ``--json``."""
    if not destination:
        yield lambda value: None
    elif destination == STDOUT:
        yield lambda value: typer.echo(json_line(value), nl=False)
        sys.stdout.flush()
    else:
        with Path(destination).open("wb") as file:
            yield lambda value: file.write(json_line(value))
        write_note(f"wrote {destination}")
