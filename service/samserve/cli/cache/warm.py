"""Embedding all images of a directory."""

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
from samserve.cli.terminal import STDOUT, json_line, write_line, write_note
from samserve.client import Client
from samserve.client.channel import MAX_MESSAGE_BYTES

_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


@dataclass(frozen=True, slots=True)
class WarmOptions:
    """Options of the Embed calls."""

    model: str
    concurrency: int
    wait: bool
    durable: bool


@dataclass(frozen=True, slots=True)
class Found:
    """Image files by name, directories that could not be read, and the number of other files."""

    images: Sequence[Path]
    failures: Sequence[OSError]
    skipped: int


@dataclass(frozen=True, slots=True)
class Record:
    """Result of one file; ``stored`` as in `samserve.client.Embedding`."""

    file: str
    id: str | None = None
    cached: bool | None = None
    stored: str | None = None
    error: str | None = None

    def line(self) -> bytes:
        """Return the record as a line of JSON."""
        return json_line(asdict(self))


@dataclass(slots=True)
class _Tally:
    new: int = 0
    cached: int = 0
    stored: dict[str, int] = field(default_factory=lambda: {"shared": 0, "local": 0})
    failures: list[str] = field(default_factory=list)

    def add(self, record: Record) -> None:
        if record.error is not None:
            self.failures.append(f"{record.file}: {record.error}")
            return
        self.cached += bool(record.cached)
        self.new += not record.cached
        tier = record.stored or "unknown tier"
        self.stored[tier] = self.stored.get(tier, 0) + 1

    def lines(self, total: int, skipped: int) -> list[str]:
        failed = len(self.failures)
        counts = {
            "files": total,
            "new": self.new,
            "already cached": self.cached,
            **self.stored,
            "failed": failed,
        }
        exceptions = {
            "not attempted": total - self.new - self.cached - failed,
            "skipped": skipped,
        }
        counts |= {name: count for name, count in exceptions.items() if count}
        return [f"{name}: {count}" for name, count in counts.items()]


def find(folder: Path, *, recursive: bool) -> Found:
    """Find images by their file name suffixes.  Raises `UsageError` if there are none."""
    failures: list[OSError] = []
    images: list[Path] = []
    skipped = 0
    for parent, folders, names in os.walk(folder, onerror=failures.append):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        files = [path for name in names if not _is_special(path := Path(parent, name))]
        found = [path for path in files if _is_image(path)]
        images += found
        skipped += len(files) - len(found)
    if not images and not failures:
        hint = "" if recursive else " (--recursive includes subdirectories)"
        raise UsageError(f"{folder}: contains no JPEG, PNG or WebP file{hint}")
    return Found(sorted(images), failures, skipped)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _IMAGE_SUFFIXES and not path.name.startswith(".")


def _is_special(path: Path) -> bool:
    """Return whether a path is not a regular file; reading a pipe, for instance, would block."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False  # reported when it is read


def _is_too_large(path: Path) -> bool:
    return path.stat().st_size > MAX_MESSAGE_BYTES


def run(found: Found, endpoint: Endpoint, options: WarmOptions, as_json: str) -> None:
    """Embed the images, write the records and print the counts."""
    tally = _Tally()
    aborted = session.run(_embed_all(found, endpoint, options, as_json, tally))
    report = write_note if as_json == STDOUT else write_line
    total = len(found.images) + len(found.failures)
    report("\n".join(tally.lines(total, found.skipped)))
    failures = [*bulk.truncated(tally.failures, "--json lists all"), *aborted]
    if failures:
        raise CommandError(*failures)


async def _embed_all(
    found: Found, endpoint: Endpoint, options: WarmOptions, as_json: str, tally: _Tally
) -> list[str]:
    """Embed the images, and return the error that aborted this, if any."""
    # Records that are printed to the terminal show the progress already.
    shown = as_json == STDOUT and sys.stdout.isatty()
    async with session.connected(endpoint) as client:
        with _records(as_json) as write:

            def done(record: Record) -> None:
                tally.add(record)
                write(record)

            async def embed(path: Path) -> None:
                done(await _embed(client, path, options))

            def on_failure(path: Path, text: str) -> None:
                done(Record(str(path), error=text))

            for failure in found.failures:
                done(Record(str(failure.filename), error=failure.strerror or str(failure)))
            job = bulk.Job("embedding", embed, on_failure, options.concurrency)
            return await bulk.run(found.images, job, quiet=shown)


async def _embed(client: Client, path: Path, options: WarmOptions) -> Record:
    """Embed one image."""
    try:
        if _is_too_large(path):
            return Record(str(path), error=f"is larger than {MAX_MESSAGE_BYTES >> 20} MiB")
        if options.wait:
            embedding = await client.embed(path, model=options.model, durable=options.durable)
        else:
            embedding = await client.prefetch(path, model=options.model)
    except OSError as error:
        return Record(str(path), error=error.strerror or str(error))
    return Record(str(path), embedding.id, embedding.cached, embedding.stored)


@contextmanager
def _records(destination: str) -> Iterator[Callable[[Record], object]]:
    """Yield a function that writes a record immediately, so that an interrupt loses none."""
    if not destination:
        yield lambda record: None
        return
    if destination == STDOUT:
        yield lambda record: typer.echo(record.line(), nl=False)
        return
    with Path(destination).open("wb", buffering=0) as file:
        yield lambda record: file.write(record.line())
    write_note(f"wrote {destination}")
