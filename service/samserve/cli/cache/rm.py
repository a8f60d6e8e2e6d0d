"""Deleting many embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import typer

from samserve.cli import bulk, session
from samserve.cli.endpoint import Endpoint
from samserve.cli.errors import CommandError, UsageError
from samserve.cli.terminal import write_line
from samserve.client.requests import checked_id

_STDIN = "-"
_CONCURRENCY = 8
# Fewer are deleted too quickly for a progress bar.
_MIN_FOR_PROGRESS = 20


def parse_ids(arguments: Sequence[str]) -> list[str]:
    """Return all ids once, in their order; ``-`` is replaced by those of standard input.

    Raises `UsageError`.
    """
    ids: dict[str, None] = {}
    for argument in arguments:
        ids.update(dict.fromkeys(_from_stdin() if argument == _STDIN else [argument]))
    for embedding_id in ids:
        try:
            checked_id(embedding_id)
        except ValueError:
            raise UsageError(f"{embedding_id[:200]!r}: is not an embedding id") from None
    return list(ids)


def _from_stdin() -> Iterator[str]:
    text = typer.get_binary_stream("stdin").read().decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), start=1):
        embedding_id = _id_of(line.strip(), number)
        if embedding_id:
            yield embedding_id


def _id_of(line: str, number: int) -> str | None:
    """Return the id of a line, which is an id or a record; None for a record of a failed file."""
    if not line.startswith("{"):
        return line
    try:
        embedding_id = json.loads(line)["id"]
    except (ValueError, KeyError, RecursionError):
        raise UsageError(f"standard input, line {number}: not a record of `warm --json`") from None
    if not isinstance(embedding_id, str | None):
        raise UsageError(f"standard input, line {number}: not a record of `warm --json`")
    return embedding_id


def run(ids: Sequence[str], endpoint: Endpoint) -> None:
    """Delete embeddings and print the result of each."""
    results: dict[str, str] = {}
    failures: list[str] = []
    try:
        failures += session.run(_delete_all(ids, endpoint, results))
    finally:
        # Also after an interrupt, since these are already deleted.
        for embedding_id, result in results.items():
            write_line(f"{embedding_id}  {result}")
    if failures:
        raise CommandError(*failures)


async def _delete_all(ids: Sequence[str], endpoint: Endpoint, results: dict[str, str]) -> list[str]:
    """Delete embeddings, add to *results*, and return the failures."""
    failures: list[str] = []
    async with session.connected(endpoint) as client:

        async def delete(embedding_id: str) -> None:
            deleted = await client.delete_embedding(embedding_id)
            results[embedding_id] = "deleted" if deleted else "not found"

        def on_failure(embedding_id: str, text: str) -> None:
            failures.append(f"{embedding_id}: {text}")

        job = bulk.Job("deleting", delete, on_failure, _CONCURRENCY)
        aborted = await bulk.run(ids, job, quiet=len(ids) <= _MIN_FOR_PROGRESS)
    return [*bulk.truncated(failures, "delete them again"), *aborted]
