"""Every method over every protocol of the HTTP listener, and clients of others."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from samserve.app import Running
from samserve.v1 import samserve_pb2 as pb

from tests import sample_images
from tests.conftest import stub_of
from tests.http.clients import PROTOCOLS, HttpCaller, envelope, messages_of
from tests.http.serving import http_service
from tests.http.wire import JSON, SERVICE, connected
from tests.rpc import test_bad_input as bad
from tests.rpc.errors import failure_of, finish
from tests.rpc.test_generic_client import buf

pytestmark = pytest.mark.asyncio(loop_scope="module")

IMAGE = sample_images.image()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[Running]:
    async with http_service() as running:
        yield running


@pytest.fixture(params=PROTOCOLS)
def caller(service: Running, request: pytest.FixtureRequest) -> HttpCaller:
    return HttpCaller(service.http_address, request.param)


def without_timings(message: pb.PredictResponse) -> pb.PredictResponse:
    del message.timings[:]
    return message


def records(messages: list[pb.AutoMaskResponse]) -> list[pb.AutoMaskRecord]:
    return [record for each in messages for record in each.masks.records]


async def test_answers_are_those_of_grpc(service: Running, caller: HttpCaller) -> None:
    async with stub_of(service.address) as stub:
        embedded = await caller.call("Embed", pb.EmbedRequest(image=IMAGE))
        of_grpc = await stub.Embed(pb.EmbedRequest(image=IMAGE))
        assert embedded.embedding.id == of_grpc.embedding.id

        predict = pb.PredictRequest(
            embedding_id=embedded.embedding.id,
            prompts=[sample_images.point_prompt()],
            multimask=pb.MULTIMASK_ALL,
            include_low_res_logits=True,
        )
        answers = [await caller.Predict(predict), await stub.Predict(predict)]
        assert len({without_timings(each).results[0].SerializeToString() for each in answers}) == 1
        assert len(answers[0].results[0].masks[0].low_res_logits) > 1 << 16

        options = pb.AutoMaskOptions(points_per_side=4)
        search = pb.AutoMaskRequest(embedding_id=embedded.embedding.id, options=options)
        found, expected = await caller.AutoMask(search), await finish(stub.AutoMask(search))
        assert records(found) == records(expected) != []
        assert found[0].HasField("progress")
        assert found[-1].summary.mask_count == len(records(expected))

        listed = await caller.ListModels(pb.ListModelsRequest())
        assert listed == await stub.ListModels(pb.ListModelsRequest())

        deletion = pb.DeleteEmbeddingRequest(embedding_id=embedded.embedding.id)
        assert (await caller.DeleteEmbedding(deletion)).deleted


async def test_invalid_requests_get_the_errors_of_grpc(
    service: Running, caller: HttpCaller
) -> None:
    """Compare all details of every case of the bad inputs of gRPC."""
    requests = [
        *(("Embed", pb.EmbedRequest(image=image)) for image, *_ in bad.IMAGES.values()),
        *(
            ("Predict", bad.predict(prompt, image=bad.sample_images.image(bad.HEIGHT, bad.WIDTH)))
            for prompt, *_ in bad.PROMPTS.values()
        ),
        *(
            (
                "AutoMask",
                pb.AutoMaskRequest(image=IMAGE, options=pb.AutoMaskOptions(**options)),  # type: ignore[arg-type]
            )
            for options, *_ in bad.OPTIONS.values()
        ),
        ("Predict", bad.predict(embedding_id="0" * 64)),
        ("Embed", pb.EmbedRequest(image=IMAGE, model="sam_vit_z")),
    ]
    assert len(requests) > 60
    async with stub_of(service.address) as stub:
        for name, request in requests:
            failures = [await failure_of(getattr(each, name)(request)) for each in (caller, stub)]
            for failure in failures:
                assert failure.metadata.pop("request_id")
            assert failures[0] == failures[1], request


async def test_masks_to_exclude_are_accepted_and_checked(caller: HttpCaller) -> None:
    def search(*masks: pb.CocoRle) -> pb.AutoMaskRequest:
        options = pb.AutoMaskOptions(points_per_side=3, exclude=masks, exclude_iou_thresh=0.5)
        return pb.AutoMaskRequest(image=IMAGE, options=options)

    first = records(await caller.AutoMask(search()))
    second = await caller.AutoMask(search(*(each.mask.coco_rle for each in first)))
    broken = pb.CocoRle(size=pb.ImageSize(height=48, width=64), counts="x")
    failure = await failure_of(caller.AutoMask(search(broken)))

    assert "exclude" in [count.filter for count in second[-1].summary.filters]
    returned = {each.mask.coco_rle.counts for each in records(second)}
    assert not returned & {each.mask.coco_rle.counts for each in first}
    assert failure.fields == ["options.exclude[0]"]


@pytest.mark.parametrize(
    "body",
    [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"{", b"[" * 5000, b"{}1"],
    ids=["tag", "length", "brace", "nested", "two values"],
)
@pytest.mark.parametrize("name", ["Embed", "AutoMask", "DeleteEmbedding"])
async def test_bytes_that_are_not_a_request_are_invalid(
    caller: HttpCaller, body: bytes, name: str
) -> None:
    content = caller.content_type(name)
    framed = envelope(body) if "connect+" in content or "web" in content else body
    if caller.protocol == "grpc_web_text":
        framed = body

    async with connected(caller.url) as wire:
        response = await wire.request(SERVICE + name, framed, [("content-type", content)])
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            caller.read(name, response)

    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("protocol", ["connect", "grpcweb"])
async def test_buf_calls_every_kind_of_method(service: Running, protocol: str) -> None:
    image = {"encoded": base64.b64encode(sample_images.png()).decode()}
    url = f"{service.http_address}{SERVICE}"
    common = ("curl", "--schema", "proto", "--protocol", protocol)

    status, listed, error = await buf(*common, "-d", "{}", url + "ListModels")
    assert (status, error) == (0, "")
    assert json.loads(listed)["models"][0]["name"] == "fake"

    request = json.dumps({"image": image, "options": {"pointsPerSide": 2}})
    status, streamed, error = await buf(*common, "-d", request, url + "AutoMask")
    assert (status, error) == (0, "")
    assert '"summary"' in streamed

    status, _, error = await buf(*common, "-d", '{"image": {}}', url + "Embed")
    assert status
    failure = json.loads(error)
    assert failure["code"] == "invalid_argument"
    values = {each["type"]: base64.b64decode(each["value"] + "==") for each in failure["details"]}
    info = error_details_pb2.ErrorInfo.FromString(values["google.rpc.ErrorInfo"])
    assert (info.domain, info.reason) == ("samserve", "INVALID_ARGUMENT")


async def test_json_needs_no_client(service: Running) -> None:
    async with connected(service.http_address) as wire:
        response = await wire.request(SERVICE + "ListModels", b"{}", [JSON])
        # Names of the proto are accepted too, on the same connection.
        failed = await wire.request(SERVICE + "Predict", b'{"embedding_id": "no"}', [JSON])

    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    assert json.loads(response.body)["models"][0]["default"] is True
    error = json.loads(failed.body)
    assert (failed.status, error["code"]) == (400, "invalid_argument")
    infos = [each["debug"] for each in error["details"] if each["type"] == "google.rpc.ErrorInfo"]
    assert infos[0]["metadata"]["request_id"] == failed.headers["x-request-id"]


async def test_unknown_fields_of_json_are_errors(service: Running) -> None:
    async with connected(service.http_address) as wire:
        response = await wire.request(SERVICE + "ListModels", b'{"modle": 1}', [JSON])

    assert response.status == 400
    assert "modle" in json.loads(response.body)["message"]


async def test_json_of_too_many_values_is_rejected_before_it_is_parsed(service: Running) -> None:
    body = b'{"prompts":[' + b"{}," * 2_000_000 + b"{}]}"
    async with connected(service.http_address) as wire:
        response = await wire.request(SERVICE + "Predict", body, [JSON])

    assert response.status == 400
    assert "values" in json.loads(response.body)["message"]


async def test_a_client_stream_is_read_as_it_arrives(service: Running) -> None:
    headers = [("content-type", "application/connect+proto"), ("transfer-encoding", "chunked")]
    message = envelope(pb.PutEmbeddingRequest(chunk=b"no").SerializeToString())
    async with connected(service.http_address) as wire:
        wire.send(wire.head(SERVICE + "PutEmbedding", headers))
        for byte in message:
            wire.send(b"1\r\n" + bytes([byte]) + b"\r\n")
            await asyncio.sleep(0)
        wire.send(b"0\r\n\r\n")
        response = await wire.response()

    ((flags, end),) = messages_of(response.body)
    assert (response.status, flags) == (200, 2)
    assert json.loads(end)["error"]["code"] in ("unimplemented", "invalid_argument")


async def test_grpc_web_has_no_client_streams(service: Running) -> None:
    async with connected(service.http_address) as wire:
        kind = ("content-type", "application/grpc-web+proto")
        response = await wire.request(SERVICE + "PutEmbedding", envelope(b""), [kind])

    assert (response.status, response.headers["accept-post"]) == (
        415,
        "application/connect+proto, application/connect+json",
    )


async def test_request_id_is_returned(caller: HttpCaller) -> None:
    async with connected(caller.url) as wire:
        content = ("content-type", caller.content_type("ListModels"))
        body = caller.encoded("ListModels", pb.ListModelsRequest())
        response = await wire.request(
            SERVICE + "ListModels", body, [content, ("x-request-id", "my-call")]
        )

    assert response.headers["x-request-id"] == "my-call"
