"""A running server on a model repository of its own, and clients that click while it is changed."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from samserve import app
from samserve.client import Client, Prompt

from benchmarks.loop.data import LabelledImage
from tests.cli.conftest import Served, server_process

MODEL = "sam_tiny"
CLIENTS = 8


def command(*arguments: object) -> str:
    """Run `samserve` in a process of its own; return its output, print its messages."""
    full = [sys.executable, "-m", "samserve", *map(str, arguments)]
    return subprocess.run(full, check=True, stdout=subprocess.PIPE, text=True).stdout


def copied(repository: Path) -> Path:
    """Copy the default model into a repository, unless it is there."""
    if not repository.exists():
        shutil.copytree(app.default_repository(), repository)
    return repository


def served(repository: Path) -> Served:
    """Return a context in which a server of the repository runs."""
    return server_process(
        "--set", "engine.kind=onnx", "--set", f"engine.model_repository={repository}"
    )


def encoded(server: Served) -> int:
    """Return the number of encoder calls of the server so far."""
    port = server.admin[1].rpartition("=")[2]
    with urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        text = response.read().decode()
    found = re.findall(r'^samserve_engine_runs_total\{.*network="encoder".*\} (.+)$', text, re.M)
    return int(sum(map(float, found)))


@dataclass
class Load:
    """Calls that succeeded, and what others failed with."""

    calls: int = 0
    failures: int = 0


@asynccontextmanager
async def clicking_clients(
    client: Client, images: Sequence[LabelledImage], load: Load
) -> AsyncIterator[None]:
    """Click with embeddings from before the block, while the block runs."""
    chosen = images[:CLIENTS]
    embeddings = [await client.embed(labelled.path) for labelled in chosen]
    over = asyncio.Event()

    async def clicks(embedding: str) -> None:
        while not over.is_set():
            try:
                await client.predict(embedding, [Prompt(points=[(100, 100)])])
                load.calls += 1
            except Exception as error:
                load.failures += 1
                print(f"a call failed: {error}", flush=True)

    async with asyncio.TaskGroup() as tasks:
        for each in embeddings:
            tasks.create_task(clicks(each.id))
        try:
            yield
        finally:
            over.set()
