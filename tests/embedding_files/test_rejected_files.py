"""Files that a server does not accept: none of them is stored, and none takes a slot."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from samserve.engines.fake import FakeEngine
from samserve.v1 import samserve_pb2 as pb

from tests.conftest import serving
from tests.embedding_files.files import (
    MIB,
    SMALL,
    Service,
    build,
    document_of,
    enabled,
    facts_of,
    join,
    put,
    split,
    tensors_of,
)
from tests.rpc.errors import failure_of

FACTS = "__metadata__"
FEATURES = tensors_of()["features"]


@pytest.fixture
async def server() -> AsyncIterator[Service]:
    async with serving(
        enabled(limits={"max_image_pixels": 10_000, "max_image_side": 200}),
        engine=FakeEngine(model=SMALL),
    ) as pair:
        yield pair


def with_value(value: float) -> dict[str, np.ndarray]:
    tensors = tensors_of()
    tensors["details"][-1, -1, -1] = value
    return tensors


def changed(at: int) -> bytes:
    data = bytearray(build())
    data[at] ^= 1
    return bytes(data)


def header(**changes: Any) -> bytes:
    """Return a file with a header that JSON writes, after replacing its parts."""
    document = {**document_of(facts_of(), tensors_of()), **changes}
    return join(document, payload())


def payload() -> bytes:
    return b"".join(tensor.tobytes() for tensor in tensors_of().values())


def text_of_header() -> str:
    return json.dumps(document_of(facts_of(), tensors_of()))


def offsets(first: list[Any], second: list[Any]) -> bytes:
    return build(changes={("features", "data_offsets"): first, ("details", "data_offsets"): second})


def fact(name: str, value: str | None) -> bytes:
    return build(changes={(FACTS, name): value})


def image(height: str, width: str) -> bytes:
    return build(facts={**facts_of(), "image_height": height, "image_width": width})


def tensor(**changes: Any) -> bytes:
    return build(changes={("details", name): value for name, value in changes.items()})


# features has 384 bytes, details 192.
MALFORMED = {
    "no bytes": b"",
    "less than a length": b"\0\0\0",
    "no header": (100).to_bytes(8, "little"),
    "empty header": join(b"", b""),
    "header of one byte": join(b"{", b""),
    "header over the limit": join(b"{" + b" " * (64 << 10) + b"}", b""),
    "header of any length": join(b"{}", b"", length=2**64 - 1),
    "length shorter than the header": join(text_of_header().encode(), payload(), length=30),
    "length longer than the header": join(
        text_of_header().encode(), payload(), length=len(text_of_header()) + 9
    ),
    "header that is not JSON": join(b"{not json}", b""),
    "header that is a list": join(b"[1, 2]", b""),
    "header with spaces before it": join(b" " + text_of_header().encode(), payload()),
    "header in UTF-16": join(text_of_header().encode("utf-16-le"), payload()),
    "header that is not UTF-8": join(b'{"\xff": {}}', b""),
    "header with half a character": join(b'{"\\ud800": {}}', b""),
    "deep header": join(b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b""),
    "number of thousands of digits": join(b'{"a": ' + b"9" * 5000 + b"}", b""),
    "duplicate tensor": join(text_of_header()[:-1].encode() + b', "details": {}}', payload()),
    "duplicate field": join(
        text_of_header().replace('"dtype"', '"shape": [1], "dtype"').encode(), payload()
    ),
    "duplicate metadata": join(
        text_of_header()[:-1].encode() + b', "__metadata__": {}}', payload()
    ),
    "no metadata": build(changes={(FACTS,): None}),
    "metadata that is a list": header(__metadata__=[]),
    "half a character in the metadata": fact("model", "\ud800"),
    "metadata of numbers": build(changes={(FACTS, "image_width"): 64}),
    "no tensors": join({FACTS: document_of(facts_of(), tensors_of())[FACTS]}, b""),
    "many tensors": build({f"t{index}": np.ones(1, "<f2") for index in range(65)}),
    "tensor that is a text": header(details="F16"),
    "unknown field of a tensor": tensor(strides=[1]),
    "missing shape": tensor(shape=None),
    "unknown type": tensor(dtype="BF16"),
    "type that is a list": tensor(dtype=["F32"]),
    "other type of the same size": tensor(dtype="F16", shape=[3, 8, 4]),
    "shape of texts": tensor(shape=["3", 4, 4]),
    "shape of bools": tensor(shape=[True, 12, 4]),
    "shape of fractions": tensor(shape=[3.0, 4, 4]),
    "shape with a zero": tensor(shape=[0, 4, 4], data_offsets=[384, 384]),
    "negative shape": tensor(shape=[-3, -4, 4]),
    "shape of many dimensions": tensor(shape=[3, 4, 4] + [1] * 7),
    "shape beyond 64 bits": tensor(shape=[2**31 - 1] * 4),
    "shape of infinity": join(
        text_of_header().replace("[3, 4, 4]", "[Infinity, 4, 4]").encode(), payload()
    ),
    "overlapping tensors": offsets([0, 384], [192, 384]),
    "equal offsets": offsets([0, 384], [0, 192]),
    "gap before the first": offsets([8, 392], [392, 584]),
    "gap between tensors": offsets([0, 384], [392, 584]),
    "offsets in reverse": offsets([384, 0], [384, 576]),
    "negative offsets": offsets([-384, 0], [0, 192]),
    "offsets of another size": offsets([0, 384], [384, 580]),
    "three offsets": offsets([0, 384, 384], [384, 576]),
    "offsets beyond 64 bits": offsets([0, 384], [2**70, 2**70 + 192]),
    "fraction as an offset": offsets([0, 384], [384.0, 576]),
    "truncated payload": build()[:-1],
    "truncated header": build()[:100],
    "trailing byte": build() + b"\0",
    "trailing file": build() * 2,
}

OTHER_CONTENT = {
    "other format": fact("format", "samserve.embedding.v2"),
    "no format": fact("format", None),
    "empty model": fact("model", ""),
    "no model": fact("model", None),
    "no encoder": fact("encoder_digest", None),
    "other encoder": build(facts={**facts_of(), "encoder_digest": "fake-2"}),
    "other preprocessing": build(facts={**facts_of(), "preprocessing": "fake-2"}),
    "no size": fact("image_width", None),
    "size in words": image("many", "64"),
    "negative size": image("-48", "64"),
    "zero size": image("0", "64"),
    "size with a space": image(" 48", "64"),
    "size in other digits": image("\N{ARABIC-INDIC DIGIT FOUR}8", "64"),
    "no id": fact("id", None),
    "id of an image": fact("id", "a" * 64),
    "id of another file": fact("id", "put_" + "a" * 64),
    "changed fact": fact("image_width", "65"),
    "changed payload": changed(-1),
    "changed first tensor": changed(len(build()) - 576),
    "one tensor only": build({"features": FEATURES}),
    "another tensor": build({**tensors_of(), "third": np.ones(2, "<f4")}),
    "another name": build(
        {"features": tensors_of()["features"], "detail": np.ones((3, 4, 4), "<f4")}
    ),
    "another shape": build({**tensors_of(), "details": np.ones((3, 4, 5), "<f4")}),
    "another type": build({**tensors_of(), "details": np.ones((3, 4, 4), "<f2")}),
    "shapes of each other": build(
        {
            "features": tensors_of()["details"],
            "details": tensors_of()["features"],
        }
    ),
    "NaN": build(with_value(np.nan)),
    "infinity": build(with_value(np.inf)),
    "negative infinity": build(with_value(-np.inf)),
}

CHUNKS = {
    "empty chunk": [build()[:50], b"", build()[50:]],
    "empty last chunk": [build(), b""],
    "large chunk": [build()[:50] + bytes(MIB)],
    "single bytes": split(build(), 1),
}


@pytest.mark.parametrize(
    "cases", [MALFORMED, OTHER_CONTENT, CHUNKS], ids=["malformed", "other content", "chunks"]
)
async def test_invalid_file_is_rejected_and_nothing_is_stored(
    server: Service, cases: dict[str, Any]
) -> None:
    running, stub = server

    failures = {name: await failure_of(put(stub, case)) for name, case in cases.items()}

    assert {name: (each.reason, each.fields) for name, each in failures.items()} == {
        name: ("INVALID_ARGUMENT", ["chunk"]) for name in cases
    }
    assert running.cache.stats().bytes == 0
    assert (await put(stub, build())).embedding.id.startswith("put_")


async def test_model_that_is_not_served_is_not_found(server: Service) -> None:
    running, stub = server

    for name in ("other", "\n" * 300, "é" * 100):
        failure = await failure_of(put(stub, build(facts={**facts_of(), "model": name})))
        assert failure.reason == "MODEL_NOT_FOUND"
    assert running.cache.stats().bytes == 0


async def test_size_of_the_image_is_limited(server: Service) -> None:
    _, stub = server

    for height, width in (("201", "10"), ("150", "100"), ("999999999", "999999999")):
        failure = await failure_of(put(stub, image(height, width)))
        assert (failure.reason, failure.fields) == ("IMAGE_TOO_LARGE", ["chunk"])
    assert (await put(stub, image("200", "50"))).embedding.image_size.height == 200


async def test_message_that_is_not_a_chunk_is_rejected(server: Service) -> None:
    running, _ = server

    async def messages() -> AsyncIterator[bytes]:
        yield b"\xff\xff\xff"

    async with grpc.aio.insecure_channel(running.address) as channel:
        call = channel.stream_unary("/samserve.v1.SegmentationService/PutEmbedding")
        failure = await failure_of(call(messages()))

    assert failure.fields == ["request"]


async def test_rejection_of_a_header_does_not_wait_for_the_payload(server: Service) -> None:
    _, stub = server
    data = build(facts={**facts_of(), "encoder_digest": "other"})
    call = stub.PutEmbedding()

    await call.write(pb.PutEmbeddingRequest(chunk=data[: -len(payload())]))

    assert (await failure_of(call)).fields == ["chunk"]
