"""Retries of the client: UNAVAILABLE, before the first response message."""

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
from tests.client.scripted import ScriptedServicer

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
Call = Callable[[Client], Awaitable[object]]
CALLS: dict[str, Call] = {
    "embed": lambda client: client.embed(PIXELS),
    "predict": lambda client: client.predict("id", [Prompt(points=[(1, 1)])]),
    "delete": lambda client: client.delete_embedding("id"),
    "models": lambda client: client.models(),
    "automask": lambda client: client.automask_all("id"),
}


def test_service_config_names_every_method() -> None:
    config = json.loads(service_config())

    (method_config,) = config["methodConfig"]
    assert {name["method"] for name in method_config["name"]} == {
        *("Embed", "Predict", "AutoMask", "DeleteEmbedding", "ListModels"),
        *("GetEmbedding", "PutEmbedding", "PromoteModel"),
    }
    assert method_config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_unavailable_is_retried(call: Call) -> None:
    servicer = ScriptedServicer(UNAVAILABLE)
    async with scripted.serving(servicer) as address, Client(address) as client:
        await call(client)

    assert len(servicer.calls) == 2


async def test_large_upload_is_retried() -> None:
    servicer = ScriptedServicer(UNAVAILABLE)
    pixels = np.zeros((1000, 1000, 3), dtype=np.uint8)
    async with scripted.serving(servicer) as address, Client(address) as client:
        await client.embed(pixels)

    assert [each.request.image.raw.size.height for each in servicer.calls] == [1000, 1000]


async def test_other_failures_are_not_retried() -> None:
    servicer = ScriptedServicer(grpc.StatusCode.INTERNAL)
    async with scripted.serving(servicer) as address, Client(address) as client:
        with pytest.raises(Internal):
            await client.embed(PIXELS)

    assert len(servicer.calls) == 1


async def test_lasting_failure_raises_after_four_attempts() -> None:
    servicer = ScriptedServicer(*[UNAVAILABLE] * 9)
    async with scripted.serving(servicer) as address, Client(address) as client:
        with pytest.raises(Unavailable):
            await client.models()

    assert len(servicer.calls) == 4


async def test_streaming_search_is_not_restarted() -> None:
    servicer = ScriptedServicer(UNAVAILABLE, events_before=1)
    seen: list[Progress] = []
    async with scripted.serving(servicer) as address, Client(address) as client:
        with pytest.raises(Unavailable):
            await client.automask_all("id", on_progress=seen.append)

    assert (len(servicer.calls), len(seen)) == (1, 1)
