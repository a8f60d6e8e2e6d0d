"""The blocking facade: the same answers, from any thread."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from samserve.client import EmbeddingNotFound, Progress, Prompt, Summary, SyncClient

from tests.client.conftest import PIXELS

CLICK = Prompt(points=[(32, 24)])


async def test_every_method_answers(target: str) -> None:
    def work() -> None:
        with SyncClient(target) as client:
            embedding = client.embed(PIXELS)
            prediction = client.predict(embedding, [CLICK])
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


async def test_errors_are_those_of_the_client(target: str) -> None:
    def work() -> None:
        with SyncClient(target) as client, pytest.raises(EmbeddingNotFound):
            client.predict("unknown", [CLICK])

    await asyncio.to_thread(work)


async def test_several_threads_share_one_client(target: str) -> None:
    pictures = [np.full((32, 32, 3), value, dtype=np.uint8) for value in range(8)]

    def work() -> list[str]:
        with SyncClient(target) as client:
            found: dict[int, str] = {}

            def embed(index: int) -> None:
                found[index] = client.embed(pictures[index]).id

            threads = [threading.Thread(target=embed, args=(index,)) for index in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert found == {index: client.embed(pictures[index]).id for index in range(8)}
            return list(found.values())

    assert len(set(await asyncio.to_thread(work))) == 8


async def test_a_search_may_be_left_early(target: str) -> None:
    def work() -> bool:
        with SyncClient(target) as client:
            search = client.automask(PIXELS, points_per_side=16)
            next(search)
            search.close()
            return client.ready()

    assert await asyncio.to_thread(work)


def test_a_client_that_is_not_open_says_so() -> None:
    client = SyncClient("127.0.0.1:1")

    with pytest.raises(RuntimeError, match="with SyncClient"):
        client.models()


def test_a_closed_client_leaves_no_thread() -> None:
    with SyncClient("127.0.0.1:1"):
        assert "samserve-client" in {thread.name for thread in threading.enumerate()}

    assert "samserve-client" not in {thread.name for thread in threading.enumerate()}
