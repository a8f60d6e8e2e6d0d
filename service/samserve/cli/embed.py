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
    from samserve.cli.terminal import say

    async def work() -> Embedding:
        async with session.connected(endpoint) as client:
            return await client.embed(image, model=model)

    embedding = session.run(work())
    height, width = embedding.image_size
    say(f"id: {embedding.id}")
    say(f"model: {embedding.model}")
    say(f"image: {width}x{height}")
    say(f"cached: {'yes' if embedding.cached else 'no'}")
    say(f"stored: {embedding.stored or 'not told'}")
    if embedding.expires_at is not None:
        say(f"expires: {embedding.expires_at.isoformat(timespec='seconds')}")
    for stage, spent in embedding.timings_ms.items():
        say(f"{stage}_ms: {spent:.2f}")
