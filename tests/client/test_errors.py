"""Every failure of a call is one of the client's own classes."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from samserve.client import (
    Cancelled,
    Client,
    DeadlineExceeded,
    Embedding,
    EmbeddingNotFound,
    Internal,
    InvalidArgument,
    ModelNotFound,
    Overloaded,
    Prompt,
    ResourceExhausted,
    SamserveClientError,
    Unavailable,
)
from samserve.engines.fake import FakeEngine

from tests.client import scripted
from tests.client.conftest import PIXELS
from tests.client.scripted import Failure, ScriptedServicer
from tests.conftest import serving, settings_with

POINT = Prompt(points=[(1, 1)])


async def test_invalid_field_is_named_with_its_limit(client: Client) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await client.predict(PIXELS, [Prompt(points=[(65, 1)])], request_id="mine")

    error = caught.value
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")
    assert error.field_violations[0].field == "prompts[0].points[0].x"
    assert error.metadata["limit"] == "64"
    assert error.request_id == "mine"
    assert error.field_violations[0].description in str(error)


async def test_unreadable_image_has_the_reason_of_the_server(client: Client) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await client.embed(b"not an image")

    assert caught.value.reason == "IMAGE_UNREADABLE"


async def test_unknown_embedding_raises_embedding_not_found(client: Client) -> None:
    with pytest.raises(EmbeddingNotFound) as caught:
        await client.predict("unknown", [POINT])

    assert len(caught.value.request_id) == 32


async def test_unknown_model_raises_model_not_found(client: Client) -> None:
    with pytest.raises(ModelNotFound, match="fake"):
        await client.embed(PIXELS, model="unknown")


async def test_error_of_a_search_raises_its_class(client: Client) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await client.automask_all(PIXELS, points_per_side=0)

    assert caught.value.field_violations[0].field == "options.points_per_side"


async def test_rejected_call_has_a_retry_delay() -> None:
    engine, hold = FakeEngine(), asyncio.Event()
    async with serving(settings_with(admission={"max_concurrent_embed": 1}), engine=engine) as (
        service,
        _,
    ):
        engine.hold(hold)
        async with Client(service.address) as client:
            calls = [asyncio.create_task(client.embed(PIXELS[rows:])) for rows in (0, 1)]
            done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            hold.set()
            results = await asyncio.gather(*calls, return_exceptions=True)

    rejected = done.pop().exception()
    assert isinstance(rejected, Overloaded)
    assert rejected.retry_after_s is not None
    assert rejected.retry_after_s > 0
    assert [isinstance(result, Embedding) for result in results].count(True) == 1


async def test_message_over_the_server_limit_raises_resource_exhausted() -> None:
    settings = settings_with(limits={"max_request_bytes": 1000})
    async with serving(settings) as (service, _), Client(service.address) as client:
        with pytest.raises(ResourceExhausted) as caught:
            await client.embed(PIXELS)

    assert not isinstance(caught.value, Overloaded)


async def test_unreachable_server_raises_unavailable() -> None:
    async with Client("127.0.0.1:1") as client:
        with pytest.raises(Unavailable) as caught:
            await client.models(request_id="mine")

    assert (caught.value.reason, caught.value.request_id) == ("", "mine")


async def test_call_over_its_timeout_raises_deadline_exceeded() -> None:
    engine = FakeEngine()
    async with serving(engine=engine) as (service, _):
        engine.hold(asyncio.Event())
        async with Client(service.address, timeout_s=0.1) as client:
            with pytest.raises(DeadlineExceeded):
                await client.embed(PIXELS)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INTERNAL, Internal),
        (grpc.StatusCode.CANCELLED, Cancelled),
        (grpc.StatusCode.DATA_LOSS, SamserveClientError),
    ],
)
async def test_status_without_details_maps_to_the_class_of_its_code(
    code: grpc.StatusCode, kind: type[SamserveClientError]
) -> None:
    servicer = ScriptedServicer(code)
    async with scripted.serving(servicer) as address, Client(address) as client:
        with pytest.raises(SamserveClientError) as caught:
            await client.models()

    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.message) == (code.name, "as scripted")


def with_corrupt_detail() -> bytes:
    corrupt = any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    return status_pb2.Status(code=5, details=[corrupt]).SerializeToString()


def with_unknown_detail() -> bytes:
    status = status_pb2.Status(code=5)
    status.details.add().Pack(error_details_pb2.Help())
    return status.SerializeToString()


@pytest.mark.parametrize(
    "details",
    [b"\xff\xff", with_corrupt_detail(), with_unknown_detail()],
    ids=["no status", "corrupt detail", "unknown detail"],
)
async def test_unreadable_details_are_ignored(details: bytes) -> None:
    servicer = ScriptedServicer(Failure(grpc.StatusCode.NOT_FOUND, details))
    async with scripted.serving(servicer) as address, Client(address) as client:
        with pytest.raises(SamserveClientError) as caught:
            await client.models()

    assert (caught.value.code, caught.value.message, caught.value.reason) == (
        *("NOT_FOUND", "as scripted"),
        "",
    )
