"""Embedding many images: `samserve embed` of several, and `samserve cache warm`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from samserve.cli import many, session
from samserve.cli.endpoint import Endpoint
from samserve.cli.inputs import Found, Input
from samserve.cli.many import Record
from samserve.client import Client, Embedding

_EMPTY = {"id": None, "cached": None, "stored": None}


@dataclass(frozen=True, slots=True)
class EmbedManyOptions:
    """Options of the Embed calls."""

    model: str = ""
    concurrency: int = many.CONCURRENCY
    wait: bool = True
    durable: bool = False


@dataclass(slots=True)
class _Tally:
    new: int = 0
    cached: int = 0
    stored: dict[str, int] = field(default_factory=lambda: {"shared": 0, "local": 0})
    converted: int = 0

    def add(self, record: Record) -> None:
        self.cached += bool(record["cached"])
        self.new += not record["cached"]
        tier = record["stored"] or "unknown tier"
        self.stored[tier] = self.stored.get(tier, 0) + 1
        self.converted += bool(record["converted_from"])

    def counts(self) -> dict[str, int]:
        counts = {"new": self.new, "already cached": self.cached, **self.stored}
        return counts | ({"converted to PNG": self.converted} if self.converted else {})


def run(
    found: Found, endpoint: Endpoint, options: EmbedManyOptions, as_json: str, model: str | None
) -> None:
    """Embed the images, write the records and print the counts.

    A server in this process loads *model* only, as in `session.connected`.
    """
    tally = _Tally()

    async def work() -> many.Outcome:
        async with session.connected(endpoint, model) as client:

            async def embed(image: Input) -> Record:
                file = await asyncio.to_thread(image.load)
                embedding = await _embed(client, file.data, options)
                return embedding_record(embedding, file.converted_from)

            job = many.Job("embedding", embed, _EMPTY, options.concurrency)
            return await many.run(found, job, as_json, tally.add)

    outcome = session.run(work())
    many.report(found, outcome, tally.counts(), as_json)


async def _embed(client: Client, data: bytes, options: EmbedManyOptions) -> Embedding:
    if options.wait:
        return await client.embed(data, model=options.model, durable=options.durable)
    return await client.prefetch(data, model=options.model)


def embedding_record(embedding: Embedding, converted_from: str) -> dict[str, Any]:
    """Return an embedding as a JSON value; ``stored`` as in `samserve.client.Embedding`."""
    expires = embedding.expires_at
    return {
        "id": embedding.id,
        "cached": embedding.cached,
        "stored": embedding.stored,
        "model": embedding.model,
        "image_size": list(embedding.image_size),
        "expires_at": None if expires is None else expires.isoformat(timespec="seconds"),
        "converted_from": converted_from,
    }
