"""What is repeated: UNAVAILABLE, before any part of an answer."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import grpc
import numpy as np
import pytest
from samserve.client import Client, Internal, Progress, Prompt, Unavailable
from samserve.client.channel import service_config

from tests.client import scripted
from tests.client.conftest import PIXELS
from tests.client.scripted import Scripted

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
Call = Callable[[Client], Awaitable[object]]
CALLS: dict[str, Call] = {
    "embed": lambda client: client.embed(PIXELS),
    "predict": lambda client: client.predict("id", [Prompt(points=[(1, 1)])]),
    "delete": lambda client: client.delete_embedding("id"),
    "models": lambda client: client.models(),
    "automask": lambda client: client.automask_all("id"),
}


def test_the_service_config_names_every_method() -> None:
    config = json.loads(service_config())

    (method_config,) = config["methodConfig"]
    assert {name["method"] for name in method_config["name"]} == {
        *("Embed", "Predict", "AutoMask", "DeleteEmbedding", "ListModels")
    }
    assert method_config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_unavailable_is_tried_again(call: Call) -> None:
    servicer = Scripted(UNAVAILABLE)
    async with scripted.serving(servicer) as address, Client(address) as client:
        await call(client)

    assert len(servicer.calls) == 2


async def test_a_large_upload_is_tried_again() -> None:
    servicer = Scripted(UNAVAILABLE)
    pixels = np.zeros((1000, 1000, 3), dtype=np.uint8)
    async with scripted.serving(servicer) as address, Client(address) as client:
        await client.embed(pixels)

    assert [each.request.image.raw.size.height for each in servicer.calls] == [1000, 1000]


async def test_other_failures_are_not_tried_again() -> None:
    servicer = Scripted(grpc.StatusCode.INTERNAL)
    async with scripted.serving(servicer) as address, Client(address) as client:
        with pytest.raises(Internal):
            await client.embed(PIXELS)

    assert len(servicer.calls) == 1


async def test_a_lasting_failure_is_told_after_four_attempts() -> None:
    servicer = Scripted(*[UNAVAILABLE] * 9)
    async with scripted.serving(servicer) as address, Client(address) as client:
        with pytest.raises(Unavailable):
            await client.models()

    assert len(servicer.calls) == 4


async def test_a_search_that_streams_already_is_not_begun_again() -> None:
    servicer = Scripted(UNAVAILABLE, events_before=1)
    seen: list[Progress] = []
    async with scripted.serving(servicer) as address, Client(address) as client:
        with pytest.raises(Unavailable):
            await client.automask_all("id", on_progress=seen.append)

    assert (len(servicer.calls), len(seen)) == (1, 1)
