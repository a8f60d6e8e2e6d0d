"""Embeddings leave a server as files, and enter another one: the masks are the same."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from samserve.client import (
    Client,
    InvalidArgument,
    MethodDisabled,
    ModelNotFound,
    Prompt,
    SyncClient,
)
from samserve.engines.fake import FakeEngine
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import sample_images
from tests.conftest import serving, serving_models, settings_with
from tests.embedding_files.files import (
    ENABLED,
    SMALL,
    Service,
    build,
    embed,
    enabled,
    facts_of,
    get,
    put,
    split,
    tensors_of,
)
from tests.rpc.errors import failure_of

safetensors = pytest.importorskip("safetensors.numpy")


@pytest.fixture
async def server() -> AsyncIterator[Service]:
    """A server with both methods and a model of small embeddings."""
    async with serving(enabled(), engine=FakeEngine(model=SMALL)) as pair:
        yield pair


async def masks_of(stub: SegmentationServiceStub, embedding_id: str) -> list[bytes]:
    """Return the masks of some prompts, and those of AutoMask, without what differs by call."""
    request = pb.PredictRequest(
        embedding_id=embedding_id,
        prompts=[sample_images.point_prompt(x, 20) for x in (10, 30, 50)],
        include_low_res_logits=True,
    )
    response: pb.PredictResponse = await stub.Predict(request)
    results = [each.SerializeToString() for each in response.results]
    options = pb.AutoMaskOptions(
        points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0, crop_n_layers=0
    )
    automask = pb.AutoMaskRequest(embedding_id=embedding_id, options=options)
    async for event in stub.AutoMask(automask):
        results += [record.SerializeToString() for record in event.masks.records]
    return results


async def test_file_of_an_embedding_gives_the_same_masks_on_another_server() -> None:
    # One prompt in each run: the last digits of scores depend on the number.
    sections = {"embedding_files": ENABLED, "engine": {"max_prompts_per_batch": 1}}
    async with serving_models(**sections) as (_, stub):
        embedding_id = await embed(stub)
        expected = await masks_of(stub, embedding_id)
        chunks = await get(stub, embedding_id)

    # Nothing is left of the first server.
    async with serving_models(**sections) as (running, stub):
        stored = (await put(stub, chunks)).embedding
        masks = await masks_of(stub, stored.id)
        encodes = running.cache.stats()
        again = await get(stub, stored.id)
        delete = pb.DeleteEmbeddingRequest(embedding_id=stored.id)
        deleted = [(await stub.DeleteEmbedding(delete)).deleted for _ in range(2)]
        gone = await failure_of(stub.GetEmbedding(pb.GetEmbeddingRequest(embedding_id=stored.id)))

    assert len(expected) > 3
    assert masks == expected
    assert encodes.entries == 1
    assert b"".join(again) == b"".join(chunks)
    assert deleted == [True, False]
    assert gone.reason == "EMBEDDING_NOT_FOUND"


async def test_file_has_the_format_of_safetensors_and_names_its_origin(server: Service) -> None:
    _, stub = server
    chunks = await get(stub, await embed(stub))
    data = b"".join(chunks)

    tensors = safetensors.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header["__metadata__"]
    assert {name: (each.dtype, each.shape) for name, each in tensors.items()} == {
        spec.name: (spec.dtype, spec.shape) for spec in SMALL.embedding
    }
    assert metadata == {**facts_of(), "id": metadata["id"]}
    stored = (await put(stub, chunks)).embedding
    assert stored.id == metadata["id"]


async def test_file_of_other_writers_is_accepted(server: Service) -> None:
    _, stub = server
    data = b"".join(await get(stub, await embed(stub)))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    saved = safetensors.save(safetensors.load(data), {**header["__metadata__"], "note": "mine"})

    first, second = [(await put(stub, each)).embedding for each in (data, saved)]

    assert first.id == second.id
    assert (first.cached, second.cached) == (False, True)


async def test_put_is_idempotent_and_described_like_an_embed(server: Service) -> None:
    running, stub = server
    data = build()
    first, second = [(await put(stub, split(data, 100))).embedding for _ in range(2)]
    before = running.cache.stats()
    third = (await put(stub, data)).embedding

    assert first.id == second.id == third.id
    assert first.id.startswith("put_")
    assert len(first.id) == 68
    assert (first.image_size.height, first.image_size.width) == (48, 64)
    assert (first.model, first.cached, second.cached) == ("fake", False, True)
    assert first.stored == pb.STORED_LOCAL
    assert third.expire_time.ToNanoseconds() > first.expire_time.ToNanoseconds()
    assert running.cache.stats().entries == before.entries == 1
    assert running.cache.stats().bytes == before.bytes


async def test_what_is_put_is_what_is_returned(server: Service) -> None:
    _, stub = server
    tensors = tensors_of(seed=3)

    stored = (await put(stub, build(tensors))).embedding
    returned = safetensors.load(b"".join(await get(stub, stored.id)))

    assert {name: each.tobytes() for name, each in returned.items()} == {
        name: each.tobytes() for name, each in tensors.items()
    }


async def test_embedding_of_a_file_is_not_that_of_an_image(server: Service) -> None:
    running, stub = server
    embedding_id = await embed(stub)
    stored = (await put(stub, await get(stub, embedding_id))).embedding
    await stub.DeleteEmbedding(pb.DeleteEmbeddingRequest(embedding_id=embedding_id))

    # The lookup of the image by its hash does not find the embedding of the file.
    sha256 = hashlib.sha256(sample_images.png()).digest()
    request = pb.EmbedRequest(image=pb.Image(encoded_sha256=sha256))
    failure = await failure_of(stub.Embed(request))
    again = await embed(stub)

    assert stored.id != embedding_id
    assert failure.reason == "EMBEDDING_NOT_FOUND"
    assert again == embedding_id
    assert running.cache.stats().entries == 2


async def test_facts_and_every_tensor_change_the_id(server: Service) -> None:
    _, stub = server
    other = {**tensors_of(), "details": tensors_of(seed=1)["details"]}
    files = [
        build(),
        build(tensors_of(seed=1)),
        build(other),
        build(facts=facts_of(size=(64, 48))),
    ]

    found = [(await put(stub, each)).embedding.id for each in files]

    assert len(set(found)) == len(files)


async def test_python_clients_get_and_put(server: Service, tmp_path: Path) -> None:
    running, _ = server
    path = tmp_path / "image.safetensors"
    async with Client(running.address) as client:
        embedding = await client.embed(sample_images.png())
        data = await client.get_embedding(embedding)
        path.write_bytes(data)
        with path.open("rb") as file:
            stored = [
                await client.put_embedding(each)
                for each in (
                    data,
                    memoryview(data),
                    path,
                    str(path),
                    iter([data[:9], data[9:]]),
                    file,
                )
            ]
        prediction = await client.predict(stored[0], [Prompt(points=[(10, 10)])])

    assert len({each.id for each in stored}) == 1
    assert (stored[0].image_size, stored[0].model, stored[0].cached) == ((48, 64), "fake", False)
    assert prediction.embedding.id == stored[0].id


async def test_sync_client_gets_and_puts(server: Service) -> None:
    running, stub = server
    embedding_id = await embed(stub)

    def call() -> str:
        with SyncClient(running.address) as client:
            return client.put_embedding(client.get_embedding(embedding_id)).id

    assert (await asyncio.to_thread(call)).startswith("put_")


async def test_error_while_a_file_is_read_cancels_the_call(server: Service) -> None:
    running, _ = server

    def parts() -> Iterator[bytes]:
        yield build()[:50]
        raise OSError("the disk has failed")

    async with Client(running.address) as client:
        with pytest.raises(OSError, match="the disk has failed"):
            await client.put_embedding(parts())
        with pytest.raises(FileNotFoundError):
            await client.put_embedding("missing.safetensors")

    assert running.cache.stats().entries == 0


async def test_clients_raise_the_error_of_a_file_that_is_rejected_early(server: Service) -> None:
    running, _ = server
    # Far more than a connection buffers: the server ends the call meanwhile.
    rejected = build(facts={**facts_of(), "encoder_digest": "other"}) + bytes(64 << 20)

    async with Client(running.address) as client:
        with pytest.raises(InvalidArgument) as caught:
            await client.put_embedding(rejected)
        with pytest.raises(ModelNotFound):
            await client.put_embedding(build(facts={**facts_of(), "model": "other"}))

    assert [each.field for each in caught.value.field_violations] == ["chunk"]


async def test_clients_raise_that_a_method_is_disabled() -> None:
    async with (
        serving(settings_with(), engine=FakeEngine(model=SMALL)) as (running, _),
        Client(running.address) as client,
    ):
        with pytest.raises(MethodDisabled):
            await client.get_embedding("a" * 64)
        with pytest.raises(MethodDisabled):
            await client.put_embedding(build())
