"""`samserve embed`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samserve.cli.endpoint import Endpoint
from samserve.cli.options import ImageFile, ModelName

if TYPE_CHECKING:
    from samserve.client import Embedding


def embed(image: ImageFile, *, model: ModelName = "", endpoint: Endpoint) -> None:
    """Encode an image and print its embedding id."""
    from samserve.cli import session
    from samserve.cli.terminal import write_line

    async def work() -> Embedding:
        async with session.connected(endpoint, model) as client:
            return await client.embed(image, model=model)

    embedding = session.run(work())
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
