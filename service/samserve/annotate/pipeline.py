"""Runs images through a segmenter: several under way, resumable, failures of single images kept.

The same for the command line, for Ray and for the tasks of Label Studio, which have their own way
to load an image and to deliver its masks.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Generic, TypeVar

from samserve.annotate import names
from samserve.annotate.gateways import Gateways
from samserve.annotate.locations import reason_of
from samserve.annotate.parallel import in_parallel
from samserve.annotate.records import Records, record_key
from samserve.annotate.retries import describe, is_fatal
from samserve.annotate.source import ImageFile, Source
from samserve.annotate.types import LoadedImage, Segmented, Segmenter
from samserve.client import ImageTooLarge, ImageUnreadable, SamserveClientError, Unavailable
from samserve.client.images import load
from samserve.datasets.types import ImageRecord
from samserve.errors import InvalidRequest, Misconfigured, SamserveError

T = TypeVar("T")


class State(Enum):
    """What became of an item."""

    ANNOTATED = "annotated"
    UNCHANGED = "unchanged"
    """It has a record of the same file, model and options."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item; ``reason`` of a failure is one line without the item's name."""

    name: str
    state: State
    masks: int = 0
    reason: str = ""
    replaced: bool = False
    """Whether the item had a record of another file, model or options."""


@dataclass(frozen=True, slots=True)
class Job(Generic[T]):
    """How one item is processed, in whole: from its load to the delivery of its masks.

    *process* raises `samserve.errors` and `samserve.client.errors`; those that concern the item
    become its outcome, those that every item would get end the run.
    """

    process: Callable[[T], Awaitable[Outcome]]
    name: Callable[[T], str]
    concurrency: int


@dataclass(slots=True)
class Summary:
    """The numbers of a run."""

    annotated: int = 0
    unchanged: int = 0
    replaced: int = 0
    """Those of the annotated that had a record of another file, model or options."""
    without_masks: int = 0
    """Those of the annotated in which nothing was found."""
    masks: int = 0
    seconds: float = 0.0
    failures: list[Outcome] = field(default_factory=list)
    aborted: str = ""
    """The error that ended the run early; empty if all items were processed."""

    def add(self, outcome: Outcome) -> None:
        """Count one more item."""
        self.masks += outcome.masks
        match outcome.state:
            case State.ANNOTATED:
                self.annotated += 1
                self.replaced += outcome.replaced
                self.without_masks += not outcome.masks
            case State.UNCHANGED:
                self.unchanged += 1
            case State.FAILED:
                self.failures.append(outcome)


async def run(
    items: Iterable[T], job: Job[T], advance: Callable[[Outcome], None] = lambda outcome: None
) -> Summary:
    """Process all items; *advance* is called with each outcome."""
    summary = Summary()
    started = time.monotonic()

    async def process(item: T) -> None:
        outcome = await _outcome(item, job)
        summary.add(outcome)
        advance(outcome)

    try:
        await in_parallel(items, process, job.concurrency)
    except (SamserveError, SamserveClientError) as error:
        summary.aborted = reason(error)
    summary.seconds = time.monotonic() - started
    return summary


async def _outcome(item: T, job: Job[T]) -> Outcome:
    """Process an item.  Raises the errors that every item would get."""
    try:
        return await job.process(item)
    except Misconfigured:
        raise
    except SamserveClientError as error:
        if is_fatal(error) or isinstance(error, Unavailable):
            raise
        return Outcome(job.name(item), State.FAILED, reason=reason(error))
    except SamserveError as error:
        return Outcome(job.name(item), State.FAILED, reason=reason(error))


def reason(error: SamserveError | SamserveClientError) -> str:
    """Return one line for an error."""
    if isinstance(error, ImageUnreadable | ImageTooLarge) and error.field_violations:
        text = error.field_violations[0].description
    elif isinstance(error, SamserveClientError):
        text = describe(error)
    elif isinstance(error, InvalidRequest) and len(error.violations) == 1:
        text = error.violations[0].description
    else:
        text = error.message
    return " ".join(text.split())


@dataclass(frozen=True, slots=True)
class ImageJob:
    """The process of one image of a source: skip, load, segment, write.  Picklable.

    ``model`` and ``digest`` are those of the gateways.
    """

    source: Source
    records: Records
    segmenter: Segmenter
    model: str
    digest: str

    async def process(self, gateways: Gateways, image: ImageFile) -> Outcome:
        """Annotate an image, unless it has a record with the same key.

        Raises `samserve.errors.InvalidRequest` for an image that cannot be annotated, and
        `Misconfigured` if records cannot be written.
        """
        opened = await asyncio.to_thread(self._open, image)
        if opened.loaded is None:
            return Outcome(image.name, State.UNCHANGED)
        segmented = await self.segmenter.segment(gateways, opened.loaded)
        # The image is not needed any more, and the record may be large.
        opened = replace(opened, loaded=None)
        await asyncio.to_thread(self._write, image, opened, segmented)
        await asyncio.to_thread(segmented.on_written)
        masks = len(segmented.annotations)
        return Outcome(image.name, State.ANNOTATED, masks, replaced=opened.replaces)

    def _open(self, image: ImageFile) -> _Opened:
        """Read an image unless it has a record.  Blocks."""
        stored = self._stored(image.name)
        fingerprint = self.segmenter.fingerprint(image.name)
        known = str(stored.get("sha256")) if image.tag and stored.get("tag") == image.tag else ""
        if known and record_key(known, self.digest, fingerprint) == stored.get("key"):
            return _Opened(known, str(stored["key"]))
        with _errors_of_image():
            data = None if self.segmenter.windowed else self.source.read(image)
            sha256 = self.source.sha256(image) if data is None else hashlib.sha256(data).hexdigest()
        key = record_key(sha256, self.digest, fingerprint)
        if key == stored.get("key"):
            return _Opened(sha256, key)
        converted = None if data is None else load(data).data
        loaded = LoadedImage(image, self.source, sha256, converted)
        return _Opened(sha256, key, bool(stored), loaded)

    def _stored(self, name: str) -> Mapping[str, Any]:
        with _errors_of_output():
            return self.records.metadata(name)

    def _write(self, image: ImageFile, opened: _Opened, segmented: Segmented) -> None:
        """Write the record.  Blocks."""
        numbered = tuple(
            replace(annotation, id=names.annotation_id(image.name, number))
            for number, annotation in enumerate(segmented.annotations, start=1)
        )
        metadata = {
            "key": opened.key,
            "sha256": opened.sha256,
            "model": self.model,
            "digest": self.digest,
        }
        record = ImageRecord(
            image.name,
            segmented.size,
            numbered,
            names.image_id(image.name),
            segmented.attributes,
            metadata | ({"tag": image.tag} if image.tag else {}),
        )
        with _errors_of_output():
            self.records.write(record)


@dataclass(frozen=True, slots=True)
class _Opened:
    """An image that has been read; ``loaded`` is None if it need not be annotated."""

    sha256: str
    key: str
    replaces: bool = False
    loaded: LoadedImage | None = None


# Of the name of an image, which is also that of its record.
_ERRORS_OF_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)


@contextmanager
def _errors_of_image() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidRequest("image", reason_of(error)) from error


@contextmanager
def _errors_of_output() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = f"the record cannot be written: {reason_of(error)}"
        if error.errno in _ERRORS_OF_NAMES:
            raise InvalidRequest("image", text) from error
        raise Misconfigured(text) from error
