"""A run from its source to its output, around the pipeline: what is before the images and after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samserve import __version__
from samserve.annotate.coco_file import FILE as COCO_FILE
from samserve.annotate.coco_file import write_coco
from samserve.annotate.lists import Failure
from samserve.annotate.locations import is_url, locate, reason_of
from samserve.annotate.outputs import Output
from samserve.annotate.pipeline import Summary
from samserve.annotate.records import FORMAT_VERSION, Records
from samserve.annotate.shards import Shard
from samserve.annotate.source import ImageFile, Source
from samserve.annotate.types import Segmenter
from samserve.client import Model
from samserve.datasets.categories import categories_value
from samserve.datasets.types import Category
from samserve.errors import InvalidRequest, Misconfigured

DESCRIPTION_FILE = "dataset.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """The images of a run; ``total`` is their number in all shards."""

    source: Source
    output: Output
    shard: Shard | None
    images: Sequence[ImageFile]
    failures: Sequence[Failure]
    skipped: int
    total: int

    @property
    def records(self) -> Records:
        """The records of the output."""
        return Records(self.output.url)

    @property
    def failures_file(self) -> str:
        """The file with the failures of this run, below the output."""
        if self.shard is None:
            return "failures.jsonl"
        return f"failures-{self.shard.index}-of-{self.shard.count}.jsonl"


@dataclass(frozen=True, slots=True)
class Files:
    """What `finish` has found and written.

    ``coco_images`` is the number of images of the COCO file, None if none was written;
    ``without_image`` counts records whose image is not in the source any more.
    """

    coco_images: int | None = None
    without_image: int = 0


def plan(source_url: str, out_url: str, shard: Shard | None = None) -> Plan:
    """Find the images of a source, and check the output.  Blocks.

    Raises `samserve.errors.InvalidRequest` for a source without images, and for an output that
    cannot be used or contains what no run has written.
    """
    source, output = Source(source_url), Output(out_url)
    if locate(source_url, "source") == locate(out_url, "out"):
        raise InvalidRequest(
            "out", f"is SOURCE itself: name another folder, such as {source}/annotated"
        )
    try:
        _check_output(output)
        found = source.find(exclude=[out_url])
        output.prepare()
    except OSError as error:
        raise InvalidRequest("out", f"{output}: {reason_of(error)}") from error
    images, failures = list(found.images), list(found.failures)
    if shard is not None:
        images = [image for image in images if shard.selects(image.name)]
        failures = [each for each in failures if shard.selects(each.name)]
    return Plan(source, output, shard, images, failures, found.skipped, len(found.images))


def _check_output(output: Output) -> None:
    """Raise `InvalidRequest` for an output with files that would be replaced but are not ours."""
    if output.is_file():
        raise InvalidRequest("out", f"{output}: is a file")
    description = _description(output)
    foreign = DESCRIPTION_FILE if description is not None and "samserve" not in description else ""
    if description is None and output.exists(COCO_FILE):
        foreign = COCO_FILE
    if foreign:
        raise InvalidRequest(
            "out", f"{output}: has a file {foreign} of another origin: name another folder"
        )


def _description(output: Output) -> Mapping[str, Any] | None:
    """Return the content of ``dataset.json``; None if there is none."""
    try:
        found = json.loads(output.read(DESCRIPTION_FILE))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def describe(
    chosen: Plan, model: Model, segmenter: Segmenter, categories: Sequence[Category] = ()
) -> list[str]:
    """Write ``dataset.json``; return the keys that differ from the run before.  Blocks.

    Raises `samserve.errors.Misconfigured` if it cannot be written.
    """
    description = {
        "samserve": __version__,
        "format": FORMAT_VERSION,
        "source": _absolute(chosen.source),
        "model": model.name,
        "digest": model.digest,
        **segmenter.fingerprint(""),
        "categories": categories_value(categories),
    }
    try:
        former = _description(chosen.output)
        chosen.output.write(DESCRIPTION_FILE, json.dumps(description, indent=2).encode() + b"\n")
    except OSError as error:
        raise Misconfigured(f"{chosen.output}: {reason_of(error)}") from error
    if former is None:
        return []
    # As they are read, without tuples.
    current = json.loads(json.dumps(description))
    return [name for name in current if name != "samserve" and current[name] != former.get(name)]


def _absolute(source: Source) -> str:
    return str(source) if is_url(source.url) else str(Path(source.url).absolute())


def finish(
    chosen: Plan, summary: Summary, *, coco: bool, categories: Sequence[Category] = ()
) -> Files:
    """Write the failures, and the COCO file unless the run ended early.  Blocks.

    Raises `samserve.errors.Misconfigured` if they cannot be written.
    """
    failed = [*chosen.failures, *(Failure(each.name, each.reason) for each in summary.failures)]
    try:
        _write_failures(chosen, failed)
        if summary.aborted or chosen.shard is not None:
            return Files()
        names = [image.name for image in chosen.images]
        missing = len(set(chosen.records.names()) - set(names))
        if not coco:
            return Files(without_image=missing)
        left_out = {each.name for each in failed}
        kept = (name for name in names if name not in left_out)
        return Files(write_coco(chosen.output.url, kept, tuple(categories)), missing)
    except OSError as error:
        raise Misconfigured(f"{chosen.output}: {reason_of(error)}") from error


def _write_failures(chosen: Plan, failed: Sequence[Failure]) -> None:
    if not failed:
        chosen.output.remove(chosen.failures_file)
        return
    lines = [json.dumps({"file_name": each.name, "reason": each.reason}) for each in failed]
    chosen.output.write(chosen.failures_file, "".join(f"{line}\n" for line in lines).encode())
