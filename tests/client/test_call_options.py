"""All requests of one call have the same options."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samserve.cli.main import main
from samserve.client import Client, Embedding, Prompt, Unavailable, calls
from samserve.v1 import samserve_pb2 as pb

from tests.client import scripted
from tests.client.scripted import ScriptedServicer
from tests.support.clock import Clock

PROMPTS = [Prompt(points=[(1, 1)]), Prompt(box=(1, 1, 9, 9))]
FILE = b"\xff\xd8\xff" + np.random.default_rng(0).bytes(300 << 10)
"""Large enough to be requested by its digest first."""

MISS = "EMBEDDING_NOT_FOUND"
# gRPC itself tries four times.
OUTAGE = ("CACHE_UNAVAILABLE",) * 4
EMBEDDING = Embedding("id", (9, 9), "mine", cached=True, expires_at=None, orientation="ignore")
DURABLE = replace(EMBEDDING, durable=True)

Call = Callable[[Client], Awaitable[Any]]


def predict(source: Any, **options: Any) -> Call:
    """Return a Predict call with options that all differ from their defaults."""
    options = {"multimask": "all", "low_res_logits": "only", "request_id": "one", **options}
    return lambda client: client.predict(source, PROMPTS, **options)


CALLS: dict[str, tuple[Call, tuple[str, ...]]] = {
    "embed, then the file": (
        lambda client: client.embed(
            FILE, model="mine", orientation="ignore", durable=True, request_id="one"
        ),
        (MISS,),
    ),
    "prefetch, then the file": (
        lambda client: client.prefetch(FILE, model="mine", orientation="ignore", request_id="one"),
        (MISS,),
    ),
    "predict on a file": (predict(FILE, model="mine", orientation="ignore"), (MISS,)),
    "predict on an id": (
        predict("id", model="mine", image=FILE, orientation="ignore"),
        (MISS, MISS),
    ),
    "predict on an embedding": (predict(EMBEDDING, image=FILE), (MISS, MISS)),
    "predict on an embedding in an outage": (predict(EMBEDDING, image=FILE), (*OUTAGE, MISS)),
    "predict on a durable embedding": (predict(DURABLE, image=FILE), (MISS, MISS)),
    "predict on a durable embedding in an outage": (predict(DURABLE, image=FILE), (*OUTAGE, MISS)),
}


@pytest.mark.parametrize("name", CALLS)
async def test_every_request_of_a_call_has_the_same_options(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, reasons = CALLS[name]
    clock = Clock()
    monkeypatch.setattr(calls, "_now", clock)

    def advance() -> None:
        clock.now += 10

    servicer = ScriptedServicer(*reasons, before=advance)
    async with (
        scripted.serving(servicer) as address,
        Client(address, timeout_s=100, token="secret-of-mine") as opened,
    ):
        result = await call(opened)

    embedding = result if isinstance(result, Embedding) else result.embedding
    requests = [each.request for each in servicer.calls]
    assert len(requests) == len(reasons) + (2 if name.endswith("a durable embedding") else 1)
    assert embedding.orientation == "ignore"
    assert embedding.durable == ("durable" in name or name.startswith("embed"))
    for number, received in enumerate(servicer.calls):
        assert received.metadata["x-request-id"] == "one"
        assert received.metadata["authorization"] == "Bearer secret-of-mine"
        if "outage" not in name:
            # One deadline for all requests; gRPC rounds the timeout up by 1 % at most.
            assert 90 - 10 * number < received.remaining_s <= (100 - 10 * number) * 1.01
        check_options(received.request, name)
    assert requests[-1].image.encoded == FILE or requests[-1].image.encoded_sha256


def check_options(request: Any, name: str) -> None:
    by_image = isinstance(request, pb.EmbedRequest) or request.HasField("image")
    if by_image:
        assert request.model == "mine"
        assert request.image.orientation == pb.ORIENTATION_IGNORE
    if isinstance(request, pb.PredictRequest):
        assert len(request.prompts) == len(PROMPTS)
        assert request.multimask == pb.MULTIMASK_ALL
        assert request.include_low_res_logits
        assert request.output_mode == pb.OUTPUT_MODE_LOW_RES_LOGITS
        return
    assert request.prefetch == name.startswith("prefetch")
    assert (request.durability == pb.DURABILITY_DURABLE) != request.prefetch


@pytest.mark.parametrize("option", ["--durable", "--no-wait"])
async def test_cache_warm_retries_with_the_same_options(option: str, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(FILE)
    token = tmp_path / "token"
    token.write_text("secret-of-mine\n")
    servicer = ScriptedServicer("OVERLOADED", MISS, "OVERLOADED", "OVERLOADED")
    async with scripted.serving(servicer) as address:
        where = ("--server", address, "--token-file", str(token))
        command = ["cache", "warm", str(tmp_path), "--model", "mine", option, *where]
        code = await asyncio.to_thread(main, command)

    assert code == 0
    # After every rejection, the image is requested by its digest again.
    assert len(servicer.calls) == 5
    for received in servicer.calls:
        assert received.request.model == "mine"
        assert received.request.prefetch == (option == "--no-wait")
        assert (received.request.durability == pb.DURABILITY_DURABLE) == (option == "--durable")
        assert received.metadata["authorization"] == "Bearer secret-of-mine"


async def test_all_requests_of_a_call_have_the_request_id_of_its_error() -> None:
    servicer = ScriptedServicer(MISS, *OUTAGE)
    async with scripted.serving(servicer) as address, Client(address) as opened:
        with pytest.raises(Unavailable) as caught:
            await opened.embed(FILE)

    ids = {each.metadata["x-request-id"] for each in servicer.calls}
    assert ids == {caught.value.request_id}
