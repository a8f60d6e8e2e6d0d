"""Processes that fork beside a client; run as a program, since the tests' own process has a server.

Every scenario writes one line of JSON: its name, and what became of its children.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from samserve.client import Client, Prompt, SamserveClientError, SyncClient

from tests.support.waiting import until_sync

PIXELS = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)
ANSWERED = "answered"
HUNG = "hung"
# Only bounds how long a failure takes.
BOUND_S = 20.0

Work = Callable[[], Any]


def forked(work: Work, *, quick: bool = True) -> str:
    """Do something in a forked child; return what it says, or how it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        text = said(work)
        os.write(writer, text.encode())
        os.close(writer)
        if quick:
            os._exit(0)
        raise SystemExit
    os.close(writer)
    try:
        code = ended(child)
        with os.fdopen(reader, "rb") as pipe:
            text = pipe.read().decode()
        return text if code == 0 else f"{text} exit {code}"
    except AssertionError:
        return HUNG


def ended(child: int) -> int:
    """Wait for a child and return its exit code; one that hangs is killed."""
    try:
        _, status = until_sync(lambda: ended_now(child), BOUND_S)
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return os.waitstatus_to_exitcode(status)


def ended_now(child: int) -> tuple[int, int] | None:
    pid, status = os.waitpid(child, os.WNOHANG)
    return (pid, status) if pid else None


def said(work: Work) -> str:
    try:
        return ANSWERED if work() else "nothing"
    except RuntimeError as error:
        return f"RuntimeError: {error}"


def own(target: str) -> bool:
    with SyncClient(target) as client:
        return client.embed(PIXELS).cached


async def own_async(target: str) -> bool:
    async with Client(target) as client:
        return (await client.embed(PIXELS)).cached


def everything(client: SyncClient, target: str) -> dict[str, str]:
    return {
        "the same": forked(client.ready),
        "its own": forked(lambda: own(target)),
        "its own, asyncio": forked(lambda: asyncio.run(own_async(target))),
        "none, and ends": forked(lambda: True, quick=False),
    }


def open_client(target: str) -> dict[str, str]:
    with SyncClient(target) as client:
        client.embed(PIXELS)
        answers = everything(client, target)
        client.embed(PIXELS)
        again = forked(client.ready)
        return {**answers, "after another call": again, "parent": said(client.ready)}


def closed_client(target: str) -> dict[str, str]:
    own(target)
    return {"its own": forked(lambda: own(target))}


def client_that_failed(target: str) -> dict[str, str]:
    with SyncClient(target) as client:
        try:
            client.predict("unknown", [Prompt(points=[(1, 1)])])
        except SamserveClientError as error:
            kept = error
        return {"the same": forked(client.ready), "error": type(kept).__name__}


def grandchildren(target: str) -> dict[str, str]:
    with SyncClient(target) as client:
        client.ready()
        return {"grandchild": forked(lambda: client.ready() and forked(client.ready) == ANSWERED)}


def search_just_closed(target: str) -> dict[str, str]:
    with SyncClient(target) as client:
        search = client.automask(PIXELS, points_per_side=16)
        next(search)
        search.close()
        return {"the same": forked(client.ready)}


def asyncio_client(target: str) -> dict[str, str]:
    async def work() -> dict[str, str]:
        async with Client(target) as client:
            await client.ready()
            answers = {
                "the same": forked(lambda: asyncio.run(client.ready())),
                "its own": forked(lambda: asyncio.run(own_async(target))),
                "its own, blocking": forked(lambda: own(target)),
            }
            return {**answers, "parent": ANSWERED if await client.ready() else "nothing"}

    return asyncio.run(work())


def loop_of_another_thread(target: str) -> dict[str, str]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def there(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    client = Client(target)
    there(client.__aenter__())
    there(client.ready())
    answers = {"its own": forked(lambda: own(target)), "parent": str(there(client.ready()))}
    there(client.__aexit__(None, None, None))
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    return answers


def multiprocessing_(target: str) -> dict[str, str]:
    context = multiprocessing.get_context("fork")
    with SyncClient(target) as client:
        client.ready()
        process = context.Process(target=client.embed, args=(PIXELS,))
        process.start()
        process.join(BOUND_S)
        alive = process.is_alive()
        if alive:
            process.kill()
            process.join()
        with context.Pool(2) as pool:
            works = pool.map_async(own, [target] * 4)
            answers = works.get(BOUND_S)
        return {"process": HUNG if alive else str(process.exitcode), "pool": str(answers)}


def prefork(target: str) -> dict[str, str]:
    """As gunicorn does with `preload_app`: the client of the master is that of its workers."""
    with SyncClient(target) as client:
        embedding = client.embed(PIXELS)

        def worker(jobs: int, answers: int) -> None:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            while os.read(jobs, 1):
                prediction = client.predict(embedding, [Prompt(points=[(32, 24)])])
                os.write(answers, b"y" if prediction.results[0][0].array[24, 32] else b"n")

        given, taken = os.pipe(), os.pipe()
        workers = []
        for number in range(4):
            child = os.fork()
            if child == 0:
                worker(given[0], taken[1])
            workers.append(child)
            if number == 2:
                # One dies; the next replaces it, and the master has made calls meanwhile.
                os.kill(workers.pop(0), signal.SIGKILL)
                client.ready()
        os.write(given[1], b"job" * 3)
        answers = b"".join(os.read(taken[0], 1) for _ in range(9))
        for child in workers:
            os.kill(child, signal.SIGTERM)
        codes = [ended(child) for child in workers]
        os.waitpid(-1, 0)
        return {"answers": answers.decode(), "workers": str(codes), "parent": said(client.ready)}


def closing(target: str) -> dict[str, str]:
    """A client that is closed before its search; not about forks, but about threads left."""
    unraisable: list[Any] = []
    sys.unraisablehook = lambda args: unraisable.append(args.exc_value)
    before = {thread.name for thread in threading.enumerate()}
    with SyncClient(target) as client:
        open_search, lost_search = (client.automask(PIXELS, points_per_side=32) for _ in range(2))
        next(open_search), next(lost_search)
    left = {thread.name for thread in threading.enumerate()} - before
    del lost_search
    gc.collect()
    answers = {"next": said(lambda: next(open_search)), "close": str(open_search.close())}
    return {**answers, "threads": str(sorted(left)), "unraisable": str(unraisable)}


def call_under_way(target: str) -> dict[str, str]:
    with SyncClient(target) as client:
        search = client.automask(PIXELS, points_per_side=8)
        next(search)
        answers = everything(client, target)
        # Children that have ended have taken nothing from the parent.
        rest = sum(1 for _ in search)
        return {
            **answers,
            "parent": said(client.ready),
            "rest": str(rest > 0),
            "afterwards": forked(client.ready),
        }


SCENARIOS: dict[str, list[Callable[[str], dict[str, str]]]] = {
    "idle": [
        *(open_client, closed_client, client_that_failed, grandchildren, search_just_closed),
        *(asyncio_client, loop_of_another_thread, multiprocessing_, prefork),
    ],
    "busy": [call_under_way],
    "closing": [closing],
}


def main(kind: str, target: str) -> None:
    for scenario in SCENARIOS[kind]:
        print(json.dumps([scenario.__name__.rstrip("_"), scenario(target)]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
