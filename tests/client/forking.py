"""Scenarios of forks with clients; a program, since the process of the tests has a server.

Every scenario writes one line of JSON: its name, and the results of its children.
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
SUCCEEDED = "succeeded"
HUNG = "hung"
# Only limits the duration of a failing test.
TIMEOUT_S = 20.0

Work = Callable[[], Any]


def run_in_fork(work: Work, *, quick: bool = True) -> str:
    """Run *work* in a forked child; return its result as a text, or how the child ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        text = result_of(work)
        os.write(writer, text.encode())
        os.close(writer)
        if quick:
            os._exit(0)
        raise SystemExit
    os.close(writer)
    try:
        code = wait_for_exit(child)
        with os.fdopen(reader, "rb") as pipe:
            text = pipe.read().decode()
        return text if code == 0 else f"{text} exit {code}"
    except AssertionError:
        return HUNG


def wait_for_exit(child: int) -> int:
    """Wait for a child and return its exit code; kill it if it hangs."""
    try:
        _, status = until_sync(lambda: poll_exit(child), TIMEOUT_S)
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return os.waitstatus_to_exitcode(status)


def poll_exit(child: int) -> tuple[int, int] | None:
    pid, status = os.waitpid(child, os.WNOHANG)
    return (pid, status) if pid else None


def result_of(work: Work) -> str:
    try:
        return SUCCEEDED if work() else "nothing"
    except RuntimeError as error:
        return f"RuntimeError: {error}"


def embed_with_own_client(target: str) -> bool:
    with SyncClient(target) as client:
        return client.embed(PIXELS).cached


async def embed_with_own_async_client(target: str) -> bool:
    async with Client(target) as client:
        return (await client.embed(PIXELS)).cached


def use_clients_in_forks(client: SyncClient, target: str) -> dict[str, str]:
    return {
        "the same": run_in_fork(client.ready),
        "its own": run_in_fork(lambda: embed_with_own_client(target)),
        "its own, asyncio": run_in_fork(lambda: asyncio.run(embed_with_own_async_client(target))),
        "none, and ends": run_in_fork(lambda: True, quick=False),
    }


def open_client(target: str) -> dict[str, str]:
    with SyncClient(target) as client:
        client.embed(PIXELS)
        results = use_clients_in_forks(client, target)
        client.embed(PIXELS)
        again = run_in_fork(client.ready)
        return {**results, "after another call": again, "parent": result_of(client.ready)}


def closed_client(target: str) -> dict[str, str]:
    embed_with_own_client(target)
    return {"its own": run_in_fork(lambda: embed_with_own_client(target))}


def client_that_failed(target: str) -> dict[str, str]:
    with SyncClient(target) as client:
        try:
            client.predict("unknown", [Prompt(points=[(1, 1)])])
        except SamserveClientError as error:
            kept = error
        return {"the same": run_in_fork(client.ready), "error": type(kept).__name__}


def grandchildren(target: str) -> dict[str, str]:
    with SyncClient(target) as client:
        client.ready()
        return {
            "grandchild": run_in_fork(
                lambda: client.ready() and run_in_fork(client.ready) == SUCCEEDED
            )
        }


def search_just_closed(target: str) -> dict[str, str]:
    with SyncClient(target) as client:
        search = client.automask(PIXELS, points_per_side=16)
        next(search)
        search.close()
        return {"the same": run_in_fork(client.ready)}


def asyncio_client(target: str) -> dict[str, str]:
    async def work() -> dict[str, str]:
        async with Client(target) as client:
            await client.ready()
            results = {
                "the same": run_in_fork(lambda: asyncio.run(client.ready())),
                "its own": run_in_fork(lambda: asyncio.run(embed_with_own_async_client(target))),
                "its own, blocking": run_in_fork(lambda: embed_with_own_client(target)),
            }
            return {**results, "parent": SUCCEEDED if await client.ready() else "nothing"}

    return asyncio.run(work())


def loop_of_another_thread(target: str) -> dict[str, str]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run_on_loop(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    client = Client(target)
    run_on_loop(client.__aenter__())
    run_on_loop(client.ready())
    results = {
        "its own": run_in_fork(lambda: embed_with_own_client(target)),
        "parent": str(run_on_loop(client.ready())),
    }
    run_on_loop(client.__aexit__(None, None, None))
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    return results


def multiprocessing_(target: str) -> dict[str, str]:
    context = multiprocessing.get_context("fork")
    with SyncClient(target) as client:
        client.ready()
        process = context.Process(target=client.embed, args=(PIXELS,))
        process.start()
        process.join(TIMEOUT_S)
        alive = process.is_alive()
        if alive:
            process.kill()
            process.join()
        with context.Pool(2) as pool:
            works = pool.map_async(embed_with_own_client, [target] * 4)
            results = works.get(TIMEOUT_S)
        return {"process": HUNG if alive else str(process.exitcode), "pool": str(results)}


def prefork(target: str) -> dict[str, str]:
    """Fork like gunicorn with `preload_app`: the workers use the client of the master."""
    with SyncClient(target) as client:
        embedding = client.embed(PIXELS)

        def worker(jobs: int, results: int) -> None:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            while os.read(jobs, 1):
                prediction = client.predict(embedding, [Prompt(points=[(32, 24)])])
                os.write(results, b"y" if prediction.results[0][0].array[24, 32] else b"n")

        job_pipe, result_pipe = os.pipe(), os.pipe()
        workers = []
        for number in range(4):
            child = os.fork()
            if child == 0:
                worker(job_pipe[0], result_pipe[1])
            workers.append(child)
            if number == 2:
                # One is killed; the next replaces it, and the master makes a call meanwhile.
                os.kill(workers.pop(0), signal.SIGKILL)
                client.ready()
        os.write(job_pipe[1], b"job" * 3)
        results = b"".join(os.read(result_pipe[0], 1) for _ in range(9))
        for child in workers:
            os.kill(child, signal.SIGTERM)
        codes = [wait_for_exit(child) for child in workers]
        os.waitpid(-1, 0)
        return {
            "results": results.decode(),
            "workers": str(codes),
            "parent": result_of(client.ready),
        }


def closing(target: str) -> dict[str, str]:
    """Close a client before its search; not about forks, but about remaining threads."""
    unraisable: list[Any] = []
    sys.unraisablehook = lambda args: unraisable.append(args.exc_value)
    before = {thread.name for thread in threading.enumerate()}
    with SyncClient(target) as client:
        open_search, lost_search = (client.automask(PIXELS, points_per_side=32) for _ in range(2))
        next(open_search), next(lost_search)
    left = {thread.name for thread in threading.enumerate()} - before
    del lost_search
    gc.collect()
    results = {"next": result_of(lambda: next(open_search)), "close": str(open_search.close())}
    return {**results, "threads": str(sorted(left)), "unraisable": str(unraisable)}


def call_in_flight(target: str) -> dict[str, str]:
    with SyncClient(target) as client:
        search = client.automask(PIXELS, points_per_side=8)
        next(search)
        results = use_clients_in_forks(client, target)
        # Children that have ended have not affected the parent.
        rest = sum(1 for _ in search)
        return {
            **results,
            "parent": result_of(client.ready),
            "rest": str(rest > 0),
            "afterwards": run_in_fork(client.ready),
        }


SCENARIOS: dict[str, list[Callable[[str], dict[str, str]]]] = {
    "idle": [
        *(open_client, closed_client, client_that_failed, grandchildren, search_just_closed),
        *(asyncio_client, loop_of_another_thread, multiprocessing_, prefork),
    ],
    "busy": [call_in_flight],
    "closing": [closing],
}


def main(kind: str, target: str) -> None:
    for scenario in SCENARIOS[kind]:
        print(json.dumps([scenario.__name__.rstrip("_"), scenario(target)]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
