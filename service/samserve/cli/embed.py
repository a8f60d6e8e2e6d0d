"""`samserve embed`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samserve.cli.options import (
    Assignments,
    CaFile,
    ConfigFile,
    ImageFile,
    ModelName,
    Server,
    TokenFile,
)

if TYPE_CHECKING:
    from samserve.client import Embedding


def embed(  # noqa: PLR0913 - each is an option of the command line
    image: ImageFile,
    *,
    model: ModelName = "",
    server: Server = "",
    config: ConfigFile = None,
    assignments: Assignments = None,
    ca: CaFile = None,
    token_file: TokenFile = None,
) -> None:
    """Encode an image and print its embedding id."""
    from samserve.cli import session
    from samserve.cli.terminal import say

    async def work() -> Embedding:
        endpoint = session.Endpoint(server, config, assignments, ca, token_file)
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
