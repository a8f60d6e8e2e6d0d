"""The first look: a real server, a real photograph, a click, a box, and everything at once.

``make demo`` runs this.  It starts the server of this package with the default model on a free
loopback port, talks to it over gRPC as any client would, and writes pictures into a folder.
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
from samserve.client import Progress as Searched
from samserve.telemetry import logs

CLICK = (352.0, 185.0)
BOXES = ((193.0, 27.0, 241.0, 74.0), (314.0, 156.0, 382.0, 216.0), (186.0, 163.0, 238.0, 216.0))
FREE_PORTS = {"server": {"port": 0, "admin_port": 0}, "log": {"level": "warning"}}


async def main(folder: Path) -> None:
    """Write the photograph and three overlays into *folder* and say how long each stage took."""
    console = Console()
    folder.mkdir(parents=True, exist_ok=True)
    photo = folder / "photo.png"
    picture = np.repeat(skimage.data.coins()[..., None], 3, axis=2)
    Image.fromarray(picture).save(photo)
    chosen = settings.load(FREE_PORTS)
    logs.configure(chosen.log)
    async with app.running(chosen) as service, Client(service.address) as client:
        console.print(f"A gRPC server answers on {service.address}.")
        await show(client, console, folder, picture)
    console.print(f"\nThe pictures are in [bold]{folder.resolve()}[/bold]:")
    for path in sorted(folder.glob("*.png")):
        console.print(f"  {path.name}")


async def show(client: Client, console: Console, folder: Path, picture: np.ndarray) -> None:
    """Embed, predict from a click and from a box, search for everything; draw each answer."""
    embedding = await client.embed(folder / "photo.png")
    report(console, "Embed", embedding.timings_ms)

    click = [Prompt(points=[CLICK])]
    clicked = await client.predict(embedding, click, multimask="all")
    report(console, "Predict from a click", clicked.timings_ms)
    overlay.draw_prediction(picture, click, clicked.results).save(folder / "click.png")

    boxes = [Prompt(box=box) for box in BOXES]
    boxed = await client.predict(embedding, boxes)
    report(console, "Predict from three boxes", boxed.timings_ms)
    overlay.draw_prediction(picture, boxes, boxed.results).save(folder / "boxes.png")

    records, summary = await search(client, console, embedding.id)
    report(console, f"AutoMask, {len(records)} masks", summary.timings_ms)
    overlay.draw_everything(picture, records).save(folder / "automask.png")


async def search(
    client: Client, console: Console, embedding_id: str
) -> tuple[list[AutoMaskRecord], Summary]:
    """Run AutoMask with its defaults from the stored embedding, behind a progress bar."""
    records: list[AutoMaskRecord] = []
    with ProgressBar(console=console, transient=True) as bar:
        task = bar.add_task("AutoMask", total=None)
        async for event in client.automask(embedding_id):
            match event:
                case AutoMaskRecord():
                    records.append(event)
                case Searched():
                    bar.update(task, total=event.total_points, completed=event.evaluated_points)
                case Summary():
                    return records, event
    raise RuntimeError("the stream ended without a summary")


def report(console: Console, title: str, timings_ms: Mapping[str, float]) -> None:
    """Print how long each stage of a call took."""
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    for stage, milliseconds in timings_ms.items():
        table.add_row(f"  {stage}", f"{milliseconds:9.1f} ms")
    console.print(table)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo")))
