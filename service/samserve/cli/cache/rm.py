"""Deleting many embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import typer

from samserve.cli import bulk, session
from samserve.cli.endpoint import Endpoint
from samserve.cli.errors import CommandError, UsageError
from samserve.cli.terminal import say
from samserve.client.requests import checked_id

_STDIN = "-"
_CONCURRENCY = 8
# Fewer are gone before anybody could look at a bar.
_MANY = 20


def named(arguments: Sequence[str]) -> list[str]:
    """Return all ids once, in their order; ``-`` stands for those of standard input."""
    ids: dict[str, None] = {}
    for argument in arguments:
        ids.update(dict.fromkeys(_from_stdin() if argument == _STDIN else [argument]))
    for embedding_id in ids:
        try:
            checked_id(embedding_id)
        except ValueError:
            raise UsageError(f"{embedding_id[:200]!r}: is no id of an embedding") from None
    return list(ids)


def _from_stdin() -> Iterator[str]:
    text = typer.get_binary_stream("stdin").read().decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), start=1):
        embedding_id = _id_of(line.strip(), number)
        if embedding_id:
            yield embedding_id


def _id_of(line: str, number: int) -> str | None:
    """Read a line, an id or a record; one of a file that could not be embedded has none."""
    if not line.startswith("{"):
        return line
    try:
        embedding_id = json.loads(line)["id"]
    except (ValueError, KeyError, RecursionError):
        raise UsageError(f"standard input, line {number}: not a record of `warm`") from None
    if not isinstance(embedding_id, str | None):
        raise UsageError(f"standard input, line {number}: not a record of `warm`")
    return embedding_id


def run(ids: Sequence[str], endpoint: Endpoint) -> None:
    """Delete them and say what became of each."""
    results: dict[str, str] = {}
    failures: list[str] = []
    try:
        failures += session.run(_delete_all(ids, endpoint, results))
    finally:
        # Also after an interrupt: what is gone is gone.
        for embedding_id, result in results.items():
            say(f"{embedding_id}  {result}")
    if failures:
        raise CommandError(*failures)


async def _delete_all(ids: Sequence[str], endpoint: Endpoint, results: dict[str, str]) -> list[str]:
    """Note results, and return what has failed."""
    failures: list[str] = []
    async with session.connected(endpoint) as client:

        async def delete(embedding_id: str) -> None:
            deleted = await client.delete_embedding(embedding_id)
            results[embedding_id] = "deleted" if deleted else "not there"

        def failed(embedding_id: str, text: str) -> None:
            failures.append(f"{embedding_id}: {text}")

        job = bulk.Job("deleting", delete, failed, _CONCURRENCY)
        ended = await bulk.run(ids, job, quiet=len(ids) <= _MANY)
    return [*bulk.shortened(failures, "delete them again"), *ended]
