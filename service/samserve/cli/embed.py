"""`samserve embed`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samserve.cli.endpoint import Endpoint
from samserve.cli.options import ImageFiles, JsonLinesFile, ModelName, Recursive
from samserve.cli.terminal import STDOUT, write_json, write_line

if TYPE_CHECKING:
    from samserve.client import Embedding


def embed(
    images: ImageFiles,
    *,
    recursive: Recursive = False,
    model: ModelName = "",
    as_json: JsonLinesFile = "",
    endpoint: Endpoint,
) -> None:
    """Encode images and print their embedding ids.

    For several images or a directory, prints a line of JSON for each image; those that cannot be
    embedded are listed at the end, and the exit code is then 1. `samserve cache warm` has further
    options.
    """
    from samserve.cli import embed_many, files, inputs, session

    files.check_outputs(None, as_json)
    found = inputs.find(images, recursive=recursive)
    if found.several:
        options = embed_many.EmbedManyOptions(model)
        embed_many.run(found, endpoint, options, as_json or STDOUT, model)
        return
    file = found.images[0].load_with_note()

    async def work() -> Embedding:
        async with session.connected(endpoint, model) as client:
            return await client.embed(file.data, model=model)

    embedding = session.run(work())
    if as_json:
        record = embed_many.embedding_record(embedding, file.converted_from)
        write_json(as_json, {"file": str(found.images[0]), **record, "error": None})
    if as_json != STDOUT:
        _print(embedding)


def _print(embedding: Embedding) -> None:
    height, width = embedding.image_size
    write_line(f"id: {embedding.id}")
    write_line(f"model: {embedding.model}")
    write_line(f"image: {width}x{height}")
    write_line(f"cached: {'yes' if embedding.cached else 'no'}")
    write_line(f"stored: {embedding.stored or 'unknown'}")
    if embedding.expires_at is not None:
        write_line(f"expires: {embedding.expires_at.isoformat(timespec='seconds')}")
    for stage, spent in embedding.timings_ms.items():
        write_line(f"{stage}_ms: {spent:.2f}")
