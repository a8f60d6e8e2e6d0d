"""A demonstration: a real server and a photo, segmented by a point, by boxes and by AutoMask.

``make demo`` runs this.  It starts the server of this package with the default model on a free
loopback port, calls it over gRPC like any client, and writes images to a folder.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from rich.console import Console
from rich.progress import Progress as ProgressBar
from rich.table import Table
from samserve import app, settings
from samserve.cli import overlay
from samserve.client import AutoMaskRecord, Client, Prompt, Summary
from samserve.client import Progress as AutoMaskProgress
from samserve.telemetry import logs

POINT = (352.0, 185.0)
BOXES = ((193.0, 27.0, 241.0, 74.0), (314.0, 156.0, 382.0, 216.0), (186.0, 163.0, 238.0, 216.0))
FREE_PORTS = {"server": {"port": 0, "admin_port": 0}, "log": {"level": "warning"}}


async def main(folder: Path) -> None:
    """Write the photo and three overlays to *folder* and print the duration of each stage."""
    console = Console()
    folder.mkdir(parents=True, exist_ok=True)
    photo = folder / "photo.png"
    image = np.repeat(skimage.data.coins()[..., None], 3, axis=2)
    Image.fromarray(image).save(photo)
    config = settings.load(FREE_PORTS)
    logs.configure(config.log)
    async with app.running(config) as service, Client(service.address) as client:
        console.print(f"The gRPC server listens on {service.address}.")
        await segment(client, console, folder, image)
    console.print(f"\nThe images are in [bold]{folder.resolve()}[/bold]:")
    for path in sorted(folder.glob("*.png")):
        console.print(f"  {path.name}")
    console.print("\nTo click on your own images in a browser, run [bold]make web[/bold].")


async def segment(client: Client, console: Console, folder: Path, image: np.ndarray) -> None:
    """Call Embed, Predict with a point and with boxes, and AutoMask; draw the masks of each."""
    embedding = await client.embed(folder / "photo.png")
    report(console, "Embed", embedding.timings_ms)

    points = [Prompt(points=[POINT])]
    from_point = await client.predict(embedding, points, multimask="all")
    report(console, "Predict with a point", from_point.timings_ms)
    overlay.draw_prediction(image, points, from_point.results).save(folder / "click.png")

    boxes = [Prompt(box=box) for box in BOXES]
    from_boxes = await client.predict(embedding, boxes)
    report(console, "Predict with three boxes", from_boxes.timings_ms)
    overlay.draw_prediction(image, boxes, from_boxes.results).save(folder / "boxes.png")

    records, summary = await run_automask(client, console, embedding.id)
    report(console, f"AutoMask, {len(records)} masks", summary.timings_ms)
    overlay.draw_masks(image, records).save(folder / "automask.png")


async def run_automask(
    client: Client, console: Console, embedding_id: str
) -> tuple[list[AutoMaskRecord], Summary]:
    """Run AutoMask with its defaults on the cached embedding, with a progress bar."""
    records: list[AutoMaskRecord] = []
    with ProgressBar(console=console, transient=True) as bar:
        task = bar.add_task("AutoMask", total=None)
        async for event in client.automask(embedding_id):
            match event:
                case AutoMaskRecord():
                    records.append(event)
                case AutoMaskProgress():
                    bar.update(task, total=event.total_points, completed=event.evaluated_points)
                case Summary():
                    return records, event
    raise RuntimeError("the stream ended without a summary")


def report(console: Console, title: str, timings_ms: Mapping[str, float]) -> None:
    """Print the duration of each stage of a call."""
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    for stage, milliseconds in timings_ms.items():
        table.add_row(f"  {stage}", f"{milliseconds:9.1f} ms")
    console.print(table)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo")))
