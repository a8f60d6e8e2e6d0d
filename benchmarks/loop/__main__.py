"""See `benchmarks.loop`."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from samserve.client import Client
from samserve.tuning.evaluation import Figures

from benchmarks.loop import data, plots, questions, service
from benchmarks.loop.annotator import Effort, review
from benchmarks.loop.data import LabelledImage
from benchmarks.loop.questions import Answers
from tests.cli.conftest import Served
from training.scenes import HELD_OUT, TRAINING

ANNOTATED_SEED, HELD_OUT_SEED, OLD_SEED, OLD_HELD_OUT_SEED = 1, 2, 800_000_000, 900_000_000
PROPOSING = ("--points-per-side", 16, "--pred-iou-thresh", 0.7, "--stability-score-thresh", 0.85)
REVIEWED = "reviewed.json"


@dataclass(frozen=True)
class HeldOut:
    """Images that are never trained: of the other kinds, and of the model's own."""

    others: list[LabelledImage]
    old: list[LabelledImage]

    async def measure(self, client: Client) -> dict[str, list[Answers]]:
        """Measure the served model on all of them."""
        parts = {"new": self.others, "old": self.old}
        return {name: await questions.measure(client, part) for name, part in parts.items()}


@dataclass(frozen=True)
class Loop:
    """A loop in a folder, with so many images and steps of training in each turn."""

    out: Path
    images: int
    steps: int
    held_out: HeldOut
    replay: Path

    @property
    def repository(self) -> Path:
        """The repository of the server."""
        return self.out / "repository"

    async def turn(self, number: int, server: Served, client: Client) -> dict[str, Any]:
        """Go round once, and return what was done and measured."""
        folder, photos = self.out / f"turn-{number}", self.out / "photos"
        indices = range(number * self.images, (number + 1) * self.images)
        new = data.others(folder / "photos", ANNOTATED_SEED, indices)
        effort = Effort()
        await self._annotated(folder, server, client, new, effort)
        # Training uses what was annotated in earlier turns, too.
        photos.mkdir(exist_ok=True)
        for labelled in new:
            shutil.copy(labelled.path, photos)
        files = [self.out / f"turn-{each}" / REVIEWED for each in range(number + 1)]
        tasks = [task for file in files for task in json.loads(file.read_text())]
        (self.out / REVIEWED).write_text(json.dumps(tasks))
        started = time.perf_counter()
        await self._tuned(folder, number)
        minutes = (time.perf_counter() - started) / 60
        load = service.Load()
        encoded = service.encoded(server)
        async with service.clicking_clients(client, self.held_out.others, load):
            await asyncio.sleep(2)
            promoting = ("--server", server.address, "--repository", self.repository)
            await _command("models", "promote", service.MODEL, folder / "models", *promoting)
            await asyncio.sleep(2)
        return {
            "annotator": effort.facts(),
            "minutes of tune": round(minutes, 1),
            "calls during promote": asdict(load),
            "embeddings encoded during promote": service.encoded(server) - encoded,
        }

    async def _annotated(
        self, folder: Path, server: Served, client: Client, new: list[LabelledImage], effort: Effort
    ) -> None:
        """Propose masks for new images, and review them; add the tasks to those of before."""
        proposals, tasks = folder / "proposals", folder / "tasks"
        shutil.rmtree(tasks, ignore_errors=True)
        source = folder / "photos"
        proposing = ("--out", proposals, "--server", server.address, *PROPOSING)
        await _command("annotate", source, *proposing)
        await _command("dataset", "convert", proposals, "--to", "label-studio", "--out", tasks)
        sheet = ("--out", folder / "proposals.png", "--limit", 6, "--columns", 3)
        await _command("dataset", "show", proposals, *sheet)
        reviewed = await review(client, tasks, proposals, new, effort)
        (folder / REVIEWED).write_text(json.dumps(reviewed))
        print(f"reviewed: {effort.facts()}", flush=True)

    async def _tuned(self, folder: Path, number: int) -> None:
        arguments = {
            "--images": self.out / "photos",
            "--model": service.MODEL,
            "--models": self.repository,
            "--name": service.MODEL,
            "--out": folder / "models",
            "--run": folder / "run",
            "--held-out": self.held_out.others[0].path.with_name(data.COCO_FILE),
            "--replay": self.replay,
            "--steps": self.steps,
            "--seed": number,
        }
        # A turn that was interrupted after its training has a model, which `tune` does not replace.
        shutil.rmtree(folder / "models", ignore_errors=True)
        options = [part for pair in arguments.items() for part in pair]
        print(await _command("tune", self.out / REVIEWED, *options, "--resume"), flush=True)


async def _command(*arguments: object) -> str:
    return await asyncio.to_thread(service.command, *arguments)


def facts(answers: Mapping[str, list[Answers]]) -> dict[str, Any]:
    """Return the figures of new images, of each of their kinds, and of old ones."""
    found: dict[str, Figures] = {name: questions.figures(each) for name, each in answers.items()}
    for kind in sorted({each.kind for each in answers["new"]}):
        found[kind] = questions.figures(answers["new"], kind)
    for name, figures in found.items():
        print(f"  {name}: {figures.objects} objects, {figures.text()}", flush=True)
    return {name: asdict(figures) for name, figures in found.items()}


async def run(loop: Loop, turns: int) -> None:
    """Go round; what is finished in the folder already is not done again."""
    service.copied(loop.repository)
    with service.served(loop.repository) as server:
        async with Client(server.address) as client:
            stages = [await _kept(loop.out / "before.json", partial(_before, loop, client))]
            for number in range(turns):
                turn = partial(_turn, loop, number, server, client)
                stages.append(await _kept(loop.out / f"turn-{number}.json", turn))
    plots.write_plot(loop.out / "loop.png", stages)
    plots.write_sheet(loop.out / "masks.png", loop.held_out.others, loop.out)


async def _before(loop: Loop, client: Client) -> dict[str, Any]:
    await plots.write_masks(client, loop.held_out.others, loop.out / "before.npz")
    return {"figures": facts(await loop.held_out.measure(client))}


async def _turn(loop: Loop, number: int, server: Served, client: Client) -> dict[str, Any]:
    done = await loop.turn(number, server, client)
    await plots.write_masks(client, loop.held_out.others, loop.out / "after.npz")
    return {**done, "figures": facts(await loop.held_out.measure(client))}


async def _kept(file: Path, work: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """Return what is in a file, or else what *work* returns, and keep it."""
    known = _read(file)
    if known is not None:
        return known
    found = await work()
    text = json.dumps(found, indent=1) + "\n"
    await asyncio.to_thread(file.write_text, text)
    print(text, flush=True)
    return found


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.exists() else None


def main() -> None:
    """Parse the command line, and go round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for data, runs and models")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--images", type=int, default=90, help="images that each turn annotates")
    parser.add_argument("--held-out", type=int, default=18)
    parser.add_argument("--steps", type=int, default=650, help="steps of training in each turn")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    others = data.others(options.out / "held-out", HELD_OUT_SEED, range(options.held_out))
    old = data.scenes(options.out / "old-held-out", OLD_HELD_OUT_SEED, options.held_out, HELD_OUT)
    replay = data.scenes(options.out / "replay", OLD_SEED, options.images, TRAINING)
    data.write_coco(others, options.out / "held-out")
    file = data.write_coco(replay, options.out / "replay")
    loop = Loop(options.out, options.images, options.steps, HeldOut(others, old), file)
    asyncio.run(run(loop, options.turns))


if __name__ == "__main__":
    main()
