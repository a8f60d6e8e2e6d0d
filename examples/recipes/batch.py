"""Segment a folder of images, a few at a time: JSON Lines with a record for each image.

Usage: python examples/recipes/batch.py photos results.jsonl --at-once 4
Each image is prompted with a point at its centre; replace `segment` by your own prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from samserve.client import Client, Overloaded, Prompt, SamserveClientError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}


async def segment(client: Client, path: Path) -> dict[str, Any]:
    """Return the best mask at the centre of an image."""
    embedding = await client.embed(path)
    height, width = embedding.image_size
    centre = Prompt(points=[(width / 2, height / 2)])
    prediction = await client.predict(embedding, [centre], image=path)
    mask = prediction.results[0][0]
    return {"segmentation": mask.rle, "predicted_iou": mask.predicted_iou, "bbox": mask.bbox}


async def patiently(attempt: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """Repeat a call that was rejected because the server is busy, after the delay it returned."""
    while True:
        try:
            return await attempt()
        except Overloaded as error:
            if error.retry_after_s is None:  # waiting does not help
                raise
            await asyncio.sleep(error.retry_after_s)


async def segment_all(
    client: Client, paths: Iterable[Path], at_once: int
) -> AsyncIterator[dict[str, Any]]:
    """Yield a record for each image as it finishes; an image that fails does not stop others."""
    left, records = iter(paths), asyncio.Queue[dict[str, Any] | None]()

    async def work() -> None:
        # Each worker takes the next path when it is done, so that memory is bounded.
        for path in left:
            try:
                record = await patiently(partial(segment, client, path))
                records.put_nowait({"file": str(path), "error": None, **record})
            except (SamserveClientError, OSError) as error:
                records.put_nowait({"file": str(path), "error": str(error)})
        records.put_nowait(None)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
        working = at_once
        while working:
            if (record := await records.get()) is None:
                working -= 1
            else:
                yield record


async def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--at-once", type=int, default=4, help="images in progress")
    parser.add_argument("--server", default="127.0.0.1:50051", help="host:port")
    options = parser.parse_args()
    paths = [path for path in sorted(options.folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    async with Client(options.server, timeout_s=300) as client:
        with options.out.open("w", encoding="utf-8") as out:
            async for record in segment_all(client, paths, options.at_once):
                out.write(json.dumps(record) + "\n")
                print(record["error"] or "done", record["file"])


if __name__ == "__main__":
    asyncio.run(main())
