"""Every RPC of the descriptor, with wrong credentials, roles and tenants."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from samserve.app import Running, running
from samserve.errors import Misconfigured
from samserve.security.principal import Permission
from samserve.v1 import samserve_pb2 as pb

from tests import pictures
from tests.conftest import UNLIMITED, settings_with
from tests.rpc.errors import Failure, failure_of, read
from tests.rpc.test_generic_client import buf
from tests.security.credentials import (
    AUDIENCE,
    ISSUER,
    KeyFile,
    bearer,
    jwk,
    jwks,
    token,
)
from tests.support.waiting import BOUND_S, until

SERVICE = pb.DESCRIPTOR.services_by_name["SegmentationService"]
METHODS = [method.name for method in SERVICE.methods]
BY_ID = [
    method.name for method in SERVICE.methods if "embedding_id" in method.input_type.fields_by_name
]
EVERY_ROLE = [permission.value for permission in Permission]
PNG = pictures.png()


class Caller:
    """Calls any method of the descriptor, with a credential."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def call(self, name: str, request: Any, metadata: Any = ()) -> Any:
        """Give the answer, or the last message of a stream; raises `AioRpcError`."""
        method = SERVICE.methods_by_name[name]
        path = f"/{SERVICE.full_name}/{name}"
        parse = GetMessageClass(method.output_type).FromString
        if not method.server_streaming:
            unary = self._channel.unary_unary(path, None, parse)
            return await unary(request.SerializeToString(), metadata=metadata, timeout=BOUND_S)
        stream = self._channel.unary_stream(path, None, parse)
        call = stream(request.SerializeToString(), metadata=metadata, timeout=BOUND_S)
        return [answer async for answer in call][-1]

    async def refusal(self, name: str, request: Any, metadata: Any = ()) -> Failure:
        return await failure_of(self.call(name, request, metadata))


def empty(name: str) -> Any:
    return GetMessageClass(SERVICE.methods_by_name[name].input_type)()


def valid(name: str, embedding_id: str = "") -> Any:
    """A request of the method that is well formed, by id where it takes one."""
    request = empty(name)
    if embedding_id:
        request.embedding_id = embedding_id
    elif "image" in request.DESCRIPTOR.fields_by_name:
        request.image.encoded = PNG
    if name == "Predict":
        request.prompts.append(pictures.click(32, 24))
    if name == "AutoMask":
        request.options.points_per_side = 2
    return request


@pytest.fixture
async def guarded(key_file: KeyFile, tmp_path: Path) -> AsyncIterator[Running]:
    """A server that takes keys and tokens."""
    jwks_file = tmp_path / "jwks.json"
    jwks_file.write_bytes(jwks(jwk()))
    auth = {
        "keys_file": key_file.path,
        "jwks_file": jwks_file,
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
    }
    tls = {"reload_s": 0.02}
    async with running(settings_with(auth=auth, tls=tls, limits={"prompts": 8})) as service:
        yield service


@pytest.fixture
async def caller(guarded: Running) -> AsyncIterator[Caller]:
    async with grpc.aio.insecure_channel(guarded.address, options=UNLIMITED) as channel:
        yield Caller(channel)


Keys = Callable[..., tuple[tuple[str, str], ...]]


@pytest.fixture
def key_of(guarded: Running, key_file: KeyFile) -> Keys:
    """Makes the metadata of a caller with a key of the tenant, with every role if none is named."""

    def add(tenant: str, *roles: str) -> tuple[tuple[str, str], ...]:
        key = key_file.add(tenant, *(roles or EVERY_ROLE))
        for watched in guarded.watched:
            watched.refresh()
        return bearer(key)

    return add


def test_the_descriptor_has_methods() -> None:
    assert {"Embed", "Predict", "AutoMask"} <= set(METHODS)
    assert {"Predict", "AutoMask", "DeleteEmbedding"} == set(BY_ID)


WORTHLESS: dict[str, Any] = {
    "none": (),
    "empty": (("authorization", ""),),
    "bearer-nothing": (("authorization", "Bearer "),),
    "basic": (("authorization", "Basic YTpi"),),
    "nonsense": (("authorization", "Bearer nonsense"),),
    "unknown-key": bearer("samserve_aaaaaaaaaaaa_" + "x" * 43),
    "no-token": bearer("a.b.c"),
}


@pytest.mark.parametrize("name", METHODS)
async def test_every_rpc_is_refused_without_credentials(
    guarded: Running, caller: Caller, name: str
) -> None:
    for kind, metadata in WORTHLESS.items():
        error = await caller.refusal(name, valid(name), metadata)

        assert (error.code.name, error.reason) == ("UNAUTHENTICATED",) * 2, kind
    assert guarded.engine.counts["encode_begun"] == 1  # the warm-up's


@pytest.mark.parametrize("name", METHODS)
async def test_every_rpc_is_refused_with_the_wrong_role(
    guarded: Running, caller: Caller, key_of: Keys, name: str
) -> None:
    needed = {"Embed": "embed", "Predict": "predict", "AutoMask": "automask"}
    needed["DeleteEmbedding"] = "embeddings_admin"
    # ListModels is for callers with any role at all.
    others = [role for role in EVERY_ROLE if role != needed.get(name)] if name in needed else []
    unknown = ["nobody-knows-this"]

    for metadata in (
        key_of("acme", *(others or unknown)),
        *(bearer(token(roles=roles)) for roles in (others, unknown)),
    ):
        error = await caller.refusal(name, valid(name), metadata)

        assert (error.code.name, error.reason) == ("PERMISSION_DENIED",) * 2
    assert guarded.engine.counts["encode_begun"] == 1


@pytest.mark.parametrize("name", METHODS)
async def test_every_rpc_is_answered_with_the_right_role(
    caller: Caller, key_of: Keys, name: str
) -> None:
    request = valid(name, "unknown" if name == "DeleteEmbedding" else "")

    assert await caller.call(name, request, key_of("acme")) is not None
    assert await caller.call(name, request, bearer(token(roles=EVERY_ROLE))) is not None


async def test_any_role_is_enough_to_list_the_models(caller: Caller) -> None:
    for role in EVERY_ROLE:
        request = pb.ListModelsRequest()

        assert (await caller.call("ListModels", request, bearer(token(roles=[role])))).models, role


@pytest.mark.parametrize("name", BY_ID)
async def test_the_id_of_another_tenant_is_as_good_as_an_unknown_one(
    caller: Caller, key_of: Keys, name: str
) -> None:
    mine, other = key_of("mine"), key_of("other")
    embedding_id = (await caller.call("Embed", valid("Embed"), other)).embedding.id
    unknown_id = (
        hashlib.sha256(b"nothing").hexdigest()[: len(embedding_id)].ljust(len(embedding_id), "0")
    )

    answers = [
        await outcome(caller, name, valid(name, id_), mine) for id_ in (embedding_id, unknown_id)
    ]

    assert answers[0] == answers[1]
    # It is there all the same, and was not touched.
    await caller.call("Predict", valid("Predict", embedding_id), other)


async def outcome(caller: Caller, name: str, request: Any, metadata: Any) -> Any:
    """All that a client sees, without what differs for every call and id."""
    try:
        answer = await caller.call(name, request, metadata)
    except grpc.aio.AioRpcError as error:
        failure = read(error)
        assert failure.metadata.pop("embedding_id") == request.embedding_id
        del failure.metadata["request_id"]
        return failure
    return answer.SerializeToString()


async def test_a_digest_of_another_tenants_picture_is_unknown(caller: Caller, key_of: Keys) -> None:
    mine, other = key_of("mine"), key_of("other")
    await caller.call("Embed", valid("Embed"), other)
    request = pb.EmbedRequest(image=pb.Image(encoded_sha256=hashlib.sha256(PNG).digest()))

    error = await caller.refusal("Embed", request, mine)

    assert error.reason == "EMBEDDING_NOT_FOUND"


async def test_tenants_with_one_picture_have_an_embedding_each(
    guarded: Running, caller: Caller, key_of: Keys
) -> None:
    one, two = key_of("one"), key_of("two")
    ids = {
        (await caller.call("Embed", valid("Embed"), tenant)).embedding.id for tenant in (one, two)
    }
    await caller.call("DeleteEmbedding", valid("DeleteEmbedding", ids.copy().pop()), one)

    assert len(ids) == 1
    assert guarded.engine.counts["encode_begun"] == 3  # the warm-up's, and one for each
    await caller.call("Predict", valid("Predict", ids.pop()), two)


@pytest.mark.parametrize("name", ["Predict", "AutoMask"])
async def test_a_new_picture_needs_the_role_to_embed(
    caller: Caller, key_of: Keys, name: str
) -> None:
    weak, strong = key_of("acme", "predict", "automask"), key_of("acme", "embed")

    error = await caller.refusal(name, valid(name), weak)
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    assert "embed" in error.text

    # One that is embedded already needs no more than that.
    await caller.call("Embed", valid("Embed"), strong)
    await caller.call(name, valid(name), weak)


async def test_keys_hold_from_when_they_are_added_until_they_are_removed(
    caller: Caller, key_file: KeyFile
) -> None:
    key = bearer(key_file.add("acme", "embed"))
    await comes_to(caller, key, "OK")

    key_file.clear()
    await comes_to(caller, key, "UNAUTHENTICATED")


async def comes_to(caller: Caller, metadata: Any, wanted: str) -> None:
    """Call until the server has noticed the file by itself."""

    async def is_so() -> bool:
        try:
            await caller.call("ListModels", pb.ListModelsRequest(), metadata)
        except grpc.aio.AioRpcError as error:
            return error.code().name == wanted
        return wanted == "OK"

    await until(is_so)


async def test_reflection_can_be_closed() -> None:
    async with running(settings_with(server={"reflection": False})) as service:
        call = ("curl", "--protocol", "grpc", "--http2-prior-knowledge", "--list-methods")
        status, _, _ = await buf(*call, f"http://{service.address}")

    assert status != 0


async def test_identities_that_nothing_proves_stop_the_start(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('version = 1\n[identities."pipeline.test"]\ntenant = "acme"\n')

    with pytest.raises(Misconfigured, match="client_ca_file"):
        async with running(settings_with(auth={"policy_file": policy})):
            pass
