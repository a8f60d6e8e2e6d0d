"""Embedding all images of a folder."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import typer

from samserve.cli import bulk, session
from samserve.cli.endpoint import Endpoint
from samserve.cli.errors import CommandError, UsageError
from samserve.cli.terminal import STDOUT, json_line, note, say
from samserve.client import Client
from samserve.client.channel import MAX_MESSAGE_BYTES

_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


@dataclass(frozen=True, slots=True)
class Wish:
    """How the images are to be embedded."""

    model: str
    concurrency: int
    wait: bool
    durable: bool


@dataclass(frozen=True, slots=True)
class Found:
    """Images by name, folders that could not be read, and how many files are none."""

    pictures: Sequence[Path]
    failures: Sequence[OSError]
    passed_over: int


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one file; ``stored`` as in `samserve.client.Embedding`."""

    file: str
    id: str | None = None
    cached: bool | None = None
    stored: str | None = None
    error: str | None = None

    def line(self) -> bytes:
        """Write it as a line of JSON."""
        return json_line(asdict(self))


@dataclass(slots=True)
class _Tally:
    new: int = 0
    there: int = 0
    stored: dict[str, int] = field(default_factory=lambda: {"shared": 0, "local": 0})
    failures: list[str] = field(default_factory=list)

    def add(self, record: Record) -> None:
        if record.error is not None:
            self.failures.append(f"{record.file}: {record.error}")
            return
        self.there += bool(record.cached)
        self.new += not record.cached
        place = record.stored or "not told where"
        self.stored[place] = self.stored.get(place, 0) + 1

    def lines(self, whole: int, passed_over: int) -> list[str]:
        failed = len(self.failures)
        counts = {
            "files": whole,
            "new": self.new,
            "already there": self.there,
            **self.stored,
            "failed": failed,
        }
        exceptions = {
            "not tried": whole - self.new - self.there - failed,
            "passed over": passed_over,
        }
        counts |= {name: count for name, count in exceptions.items() if count}
        return [f"{name}: {count}" for name, count in counts.items()]


def find(folder: Path, *, recursive: bool) -> Found:
    """Look for images by the ends of their names.  Raises `UsageError` if there are none."""
    failures: list[OSError] = []
    pictures: list[Path] = []
    others = 0
    for place, folders, names in os.walk(folder, onerror=failures.append):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        files = [path for name in names if not _is_special(path := Path(place, name))]
        chosen = [path for path in files if _is_picture(path)]
        pictures += chosen
        others += len(files) - len(chosen)
    if not pictures and not failures:
        hint = "" if recursive else " (--recursive looks into the folders in it)"
        raise UsageError(f"{folder}: there is no JPEG, PNG or WebP file{hint}")
    return Found(sorted(pictures), failures, others)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _PICTURES and not path.name.startswith(".")


def _is_special(path: Path) -> bool:
    """Return whether it is no file: a pipe, say, which would be waited for."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False  # told when it is read


def _is_too_large(path: Path) -> bool:
    return path.stat().st_size > MAX_MESSAGE_BYTES


def run(found: Found, endpoint: Endpoint, wish: Wish, as_json: str) -> None:
    """Embed what was found, write the records and say how it went."""
    tally = _Tally()
    ended = session.run(_embed_all(found, endpoint, wish, as_json, tally))
    report = note if as_json == STDOUT else say
    whole = len(found.pictures) + len(found.failures)
    report("\n".join(tally.lines(whole, found.passed_over)))
    failures = [*bulk.shortened(tally.failures, "--json tells of each"), *ended]
    if failures:
        raise CommandError(*failures)


async def _embed_all(
    found: Found, endpoint: Endpoint, wish: Wish, as_json: str, tally: _Tally
) -> list[str]:
    """Return what has ended it early, if anything."""
    # Where records appear on the terminal line by line, they are the progress.
    shown = as_json == STDOUT and sys.stdout.isatty()
    async with session.connected(endpoint) as client:
        with _records(as_json) as write:

            def done(record: Record) -> None:
                tally.add(record)
                write(record)

            async def embed(path: Path) -> None:
                done(await _record(client, path, wish))

            def failed(path: Path, text: str) -> None:
                done(Record(str(path), error=text))

            for failure in found.failures:
                done(Record(str(failure.filename), error=failure.strerror or str(failure)))
            job = bulk.Job("embedding", embed, failed, wish.concurrency)
            return await bulk.run(found.pictures, job, quiet=shown)


async def _record(client: Client, path: Path, wish: Wish) -> Record:
    """Embed one image."""
    try:
        if _is_too_large(path):
            return Record(str(path), error=f"is over {MAX_MESSAGE_BYTES >> 20} MiB")
        if wish.wait:
            embedding = await client.embed(path, model=wish.model, durable=wish.durable)
        else:
            embedding = await client.prefetch(path, model=wish.model)
    except OSError as error:
        return Record(str(path), error=error.strerror or str(error))
    return Record(str(path), embedding.id, embedding.cached, embedding.stored)


@contextmanager
def _records(destination: str) -> Iterator[Callable[[Record], object]]:
    """Write each record at once, so that an interrupt loses none."""
    if not destination:
        yield lambda record: None
        return
    if destination == STDOUT:
        yield lambda record: typer.echo(record.line(), nl=False)
        return
    with Path(destination).open("wb", buffering=0) as file:
        yield lambda record: file.write(record.line())
    note(f"wrote {destination}")
