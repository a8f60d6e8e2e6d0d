"""The blocking client: the same results as the asyncio client, from any thread."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from typing import Any

import numpy as np
import pytest
from samserve.client import (
    Client,
    Progress,
    Prompt,
    Summary,
    SyncClient,
    connection,
)

from tests.client.conftest import PIXELS, run_scenarios
from tests.support.waiting import until_sync

POINT = Prompt(points=[(32, 24)])


async def test_every_method_returns_a_result(target: str) -> None:
    def work() -> None:
        with SyncClient(target) as client:
            embedding = client.embed(PIXELS)
            prediction = client.predict(embedding, [POINT])
            events = list(client.automask(embedding, points_per_side=4))
            result = client.automask_all(embedding, points_per_side=4)

            assert prediction.results[0][0].array[24, 32]
            assert isinstance(events[0], Progress)
            assert isinstance(events[-1], Summary)
            assert len(result.records) == events[-1].mask_count
            assert client.models().models[0].name == "fake"
            assert client.ready()
            assert client.delete_embedding(embedding)

    await asyncio.to_thread(work)


async def test_several_threads_share_one_client(target: str) -> None:
    arrays = [np.full((32, 32, 3), value, dtype=np.uint8) for value in range(8)]

    def work() -> list[str]:
        with SyncClient(target) as client:
            found: dict[int, str] = {}

            def embed(index: int) -> None:
                found[index] = client.embed(arrays[index]).id

            threads = [threading.Thread(target=embed, args=(index,)) for index in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert found == {index: client.embed(arrays[index]).id for index in range(8)}
            return list(found.values())

    assert len(set(await asyncio.to_thread(work))) == 8


def test_client_that_is_not_open_raises_runtime_error() -> None:
    client = SyncClient("127.0.0.1:1")

    with pytest.raises(RuntimeError, match="with SyncClient"):
        client.models()


def test_closed_client_leaves_no_thread() -> None:
    with SyncClient("127.0.0.1:1"):
        assert "samserve-client" in {thread.name for thread in threading.enumerate()}

    assert "samserve-client" not in {thread.name for thread in threading.enumerate()}


async def test_client_can_be_closed_before_its_searches() -> None:
    found = (await run_scenarios("closing"))["closing"]

    assert "not open" in found.pop("next")
    # Closing the search raises nothing, and no thread or unraisable error remains.
    assert found == {"close": "None", "threads": "[]", "unraisable": "[]"}


async def test_process_exits_with_an_open_search(target: str) -> None:
    code = f"""
import numpy as np
from samserve.client import SyncClient

client = SyncClient({target!r}).__enter__()
search = client.automask(np.zeros((8, 8, 3), np.uint8))
next(search)
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), stderr=asyncio.subprocess.PIPE
    )
    try:
        # The failure would be an endless wait.
        _, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert (process.returncode, err) == (0, b"")


async def test_call_raises_when_another_thread_closes_the_client(target: str) -> None:
    failures: list[BaseException] = []

    def search(client: SyncClient, begun: threading.Event) -> None:
        def begin(progress: Progress) -> None:
            begun.set()

        try:
            client.automask_all(PIXELS, points_per_side=64, on_progress=begin)
        except RuntimeError as error:
            failures.append(error)

    def work() -> None:
        begun = threading.Event()
        with SyncClient(target) as client:
            thread = threading.Thread(target=search, args=(client, begun))
            thread.start()
            begun.wait()
        thread.join()

    await asyncio.to_thread(work)

    assert [str(each) for each in failures] == ["the client was closed during this call"]


async def test_calls_started_while_closing_do_not_block(
    target: str,
) -> None:
    def call(client: SyncClient) -> None:
        try:
            while True:
                client.ready()
        except RuntimeError:
            return

    def work() -> None:
        for _ in range(10):
            with SyncClient(target) as client:
                threads = [threading.Thread(target=call, args=(client,)) for _ in range(4)]
                for thread in threads:
                    thread.start()
                client.ready()
            for thread in threads:
                until_sync(lambda thread=thread: not thread.is_alive())

    await asyncio.to_thread(work)


def test_sync_client_cannot_be_opened_twice() -> None:
    with SyncClient("127.0.0.1:1") as client:
        with pytest.raises(RuntimeError, match="already open"), client:
            pass

        names = [thread.name for thread in threading.enumerate()]
        assert names.count("samserve-client") == 1


async def test_asyncio_client_cannot_be_opened_twice() -> None:
    async with Client("127.0.0.1:1") as client:
        with pytest.raises(RuntimeError, match="already open"):
            await client.__aenter__()


def test_failed_open_raises_and_leaves_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no memory for a channel")

    monkeypatch.setattr(connection, "open_channel", fail)

    with pytest.raises(OSError, match="no memory"), SyncClient("127.0.0.1:1"):
        pass
    assert "samserve-client" not in {thread.name for thread in threading.enumerate()}


def test_sync_client_has_every_method() -> None:
    methods = {name for name in vars(Client) if not name.startswith("_")}

    assert methods <= set(vars(SyncClient))


def test_sync_client_has_the_same_arguments() -> None:
    assert inspect.signature(SyncClient).parameters == inspect.signature(Client).parameters
