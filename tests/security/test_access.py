"""Every RPC of the descriptor with wrong credentials, roles and tenants."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from samserve.app import Running, running
from samserve.engines.fake import FakeEngine
from samserve.errors import Misconfigured
from samserve.security.principal import Permission
from samserve.v1 import samserve_pb2 as pb

from tests import sample_images
from tests.conftest import UNLIMITED, settings_with
from tests.embedding_files import files
from tests.http.clients import HttpCaller
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
from tests.support.waiting import TIMEOUT_S, until

SERVICE = pb.DESCRIPTOR.services_by_name["SegmentationService"]
METHODS = [method.name for method in SERVICE.methods]
BY_ID = [
    method.name for method in SERVICE.methods if "embedding_id" in method.input_type.fields_by_name
]
EVERY_ROLE = [permission.value for permission in Permission]
PNG = sample_images.png()


class Caller:
    """Calls any method of the descriptor with a credential."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def call(self, name: str, request: Any, metadata: Any = ()) -> Any:
        """Return the response, or the last message of a stream; raises `AioRpcError`."""
        method = SERVICE.methods_by_name[name]
        path = f"/{SERVICE.full_name}/{name}"
        parse = GetMessageClass(method.output_type).FromString
        if not method.server_streaming:
            unary = self._channel.unary_unary(path, None, parse)
            return await unary(request.SerializeToString(), metadata=metadata, timeout=TIMEOUT_S)
        stream = self._channel.unary_stream(path, None, parse)
        call = stream(request.SerializeToString(), metadata=metadata, timeout=TIMEOUT_S)
        return [message async for message in call][-1]

    async def failure(self, name: str, request: Any, metadata: Any = ()) -> Failure:
        return await failure_of(self.call(name, request, metadata))


def empty(name: str) -> Any:
    return GetMessageClass(SERVICE.methods_by_name[name].input_type)()


def valid(name: str, embedding_id: str = "") -> Any:
    """Return a valid request of the method, by id where the method accepts one."""
    request = empty(name)
    if embedding_id:
        request.embedding_id = embedding_id
    elif "image" in request.DESCRIPTOR.fields_by_name:
        request.image.encoded = PNG
    if name == "Predict":
        request.prompts.append(sample_images.point_prompt(32, 24))
    if name == "AutoMask":
        request.options.points_per_side = 2
    if name == "PromoteModel":
        request.step, request.model, request.digest = pb.PROMOTION_STEP_DRAIN, "fake", "0" * 64
    if name == "PutEmbedding":
        request.chunk = files.build()
    return request


@pytest.fixture
async def guarded(key_file: KeyFile, tmp_path: Path) -> AsyncIterator[Running]:
    """A server that accepts API keys and tokens."""
    jwks_file = tmp_path / "jwks.json"
    jwks_file.write_bytes(jwks(jwk()))
    auth = {
        "api_keys_file": key_file.path,
        "jwks_file": jwks_file,
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
    }
    tls = {"reload_interval_s": 0.02}
    http = {"enabled": True, "port": 0}
    settings = files.enabled(auth=auth, tls=tls, http=http, limits={"max_prompts": 8})
    # Its files fit into one message.
    async with running(settings, engine=FakeEngine(model=files.SMALL)) as service:
        yield service


@pytest.fixture(params=["grpc", "connect", "json", "grpc_web"])
async def caller(
    guarded: Running, request: pytest.FixtureRequest
) -> AsyncIterator[Caller | HttpCaller]:
    """A caller over each protocol."""
    protocol = request.param
    if protocol == "grpc_web" and request.node.callspec.params.get("name") == "PutEmbedding":
        protocol = "connect"  # gRPC-Web has no client streams
    if protocol != "grpc":
        yield HttpCaller(guarded.http_address, protocol)
        return
    async with grpc.aio.insecure_channel(guarded.address, options=UNLIMITED) as channel:
        yield Caller(channel)


Keys = Callable[..., tuple[tuple[str, str], ...]]


@pytest.fixture
def key_of(guarded: Running, key_file: KeyFile) -> Keys:
    """Create the metadata of a caller with a key of the tenant; by default with every role."""

    def add(tenant: str, *roles: str) -> tuple[tuple[str, str], ...]:
        key = key_file.add(tenant, *(roles or EVERY_ROLE))
        for file in guarded.files:
            file.refresh()
        return bearer(key)

    return add


def test_the_descriptor_has_methods() -> None:
    assert {"Embed", "Predict", "AutoMask"} <= set(METHODS)
    assert {"Predict", "AutoMask", "DeleteEmbedding", "GetEmbedding"} == set(BY_ID)


INVALID: dict[str, Any] = {
    "none": (),
    "empty": (("authorization", ""),),
    "bearer-nothing": (("authorization", "Bearer "),),
    "basic": (("authorization", "Basic YTpi"),),
    "nonsense": (("authorization", "Bearer nonsense"),),
    "unknown-key": bearer("samserve_aaaaaaaaaaaa_" + "x" * 43),
    "no-token": bearer("a.b.c"),
}


@pytest.mark.parametrize("name", METHODS)
async def test_every_rpc_requires_credentials(guarded: Running, caller: Caller, name: str) -> None:
    for kind, metadata in INVALID.items():
        error = await caller.failure(name, valid(name), metadata)

        assert (error.code.name, error.reason) == ("UNAUTHENTICATED",) * 2, kind
    assert guarded.engine.counts["encode_begun"] == 1  # the warm-up's


@pytest.mark.parametrize("name", METHODS)
async def test_every_rpc_rejects_the_wrong_role(
    guarded: Running, caller: Caller, key_of: Keys, name: str
) -> None:
    needed = {"Embed": "embed", "Predict": "predict", "AutoMask": "automask"}
    needed["DeleteEmbedding"] = "embeddings_admin"
    needed["GetEmbedding"], needed["PutEmbedding"] = "embeddings_read", "embeddings_write"
    # ListModels accepts any role.
    others = [role for role in EVERY_ROLE if role != needed.get(name)] if name in needed else []
    unknown = ["unknown-role"]

    for metadata in (
        key_of("acme", *(others or unknown)),
        *(bearer(token(roles=roles)) for roles in (others, unknown)),
    ):
        error = await caller.failure(name, valid(name), metadata)

        assert (error.code.name, error.reason) == ("PERMISSION_DENIED",) * 2
    assert guarded.engine.counts["encode_begun"] == 1


@pytest.mark.parametrize("name", METHODS)
async def test_every_rpc_succeeds_with_the_right_role(
    caller: Caller, key_of: Keys, name: str
) -> None:
    request = valid(name, "unknown" if name == "DeleteEmbedding" else "")

    for metadata in (key_of("acme"), bearer(token(roles=EVERY_ROLE))):
        if name == "GetEmbedding":
            embedded = await caller.call("Embed", valid("Embed"), metadata)
            request = valid(name, embedded.embedding.id)
        assert await caller.call(name, request, metadata) is not None


async def test_list_models_accepts_any_role(caller: Caller) -> None:
    for role in EVERY_ROLE:
        request = pb.ListModelsRequest()

        assert (await caller.call("ListModels", request, bearer(token(roles=[role])))).models, role


@pytest.mark.parametrize("name", BY_ID)
async def test_an_id_of_another_tenant_is_indistinguishable_from_an_unknown_one(
    caller: Caller, key_of: Keys, name: str
) -> None:
    mine, other = key_of("mine"), key_of("other")
    embedding_id = (await caller.call("Embed", valid("Embed"), other)).embedding.id
    unknown_id = (
        hashlib.sha256(b"nothing").hexdigest()[: len(embedding_id)].ljust(len(embedding_id), "0")
    )

    outcomes = [
        await outcome(caller, name, valid(name, id_), mine) for id_ in (embedding_id, unknown_id)
    ]

    assert outcomes[0] == outcomes[1]
    # The embedding exists and was not deleted.
    await caller.call("Predict", valid("Predict", embedding_id), other)


async def outcome(caller: Caller, name: str, request: Any, metadata: Any) -> Any:
    """Return all that a client observes, without the parts that differ for each call and id."""
    try:
        response = await caller.call(name, request, metadata)
    except grpc.aio.AioRpcError as error:
        failure = read(error)
        assert failure.metadata.pop("embedding_id") == request.embedding_id
        del failure.metadata["request_id"]
        return failure
    return response.SerializeToString()


async def test_a_digest_of_another_tenants_image_is_unknown(caller: Caller, key_of: Keys) -> None:
    mine, other = key_of("mine"), key_of("other")
    await caller.call("Embed", valid("Embed"), other)
    request = pb.EmbedRequest(image=pb.Image(encoded_sha256=hashlib.sha256(PNG).digest()))

    error = await caller.failure("Embed", request, mine)

    assert error.reason == "EMBEDDING_NOT_FOUND"


async def test_tenants_do_not_share_embeddings_of_equal_images(
    guarded: Running, caller: Caller, key_of: Keys
) -> None:
    one, two = key_of("one"), key_of("two")
    ids = {
        (await caller.call("Embed", valid("Embed"), tenant)).embedding.id for tenant in (one, two)
    }
    await caller.call("DeleteEmbedding", valid("DeleteEmbedding", ids.copy().pop()), one)

    assert len(ids) == 1
    assert guarded.engine.counts["encode_begun"] == 3  # the warm-up's, and one per tenant
    await caller.call("Predict", valid("Predict", ids.pop()), two)


@pytest.mark.parametrize("name", ["Predict", "AutoMask"])
async def test_a_new_image_requires_the_embed_permission(
    caller: Caller, key_of: Keys, name: str
) -> None:
    weak, strong = key_of("acme", "predict", "automask"), key_of("acme", "embed")

    error = await caller.failure(name, valid(name), weak)
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    assert "embed" in error.text

    # An image that is embedded already requires no further permission.
    await caller.call("Embed", valid("Embed"), strong)
    await caller.call(name, valid(name), weak)


async def test_added_and_removed_keys_take_effect_without_restart(
    caller: Caller, key_file: KeyFile
) -> None:
    key = bearer(key_file.add("acme", "embed"))
    await until_code(caller, key, "OK")

    key_file.clear()
    await until_code(caller, key, "UNAUTHENTICATED")


async def until_code(caller: Caller, metadata: Any, expected: str) -> None:
    """Call until the server has reloaded the file."""

    async def has_code() -> bool:
        try:
            await caller.call("ListModels", pb.ListModelsRequest(), metadata)
        except grpc.aio.AioRpcError as error:
            return error.code().name == expected
        return expected == "OK"

    await until(has_code)


async def test_reflection_can_be_disabled() -> None:
    async with running(settings_with(server={"reflection": False})) as service:
        call = ("curl", "--protocol", "grpc", "--http2-prior-knowledge", "--list-methods")
        status, _, _ = await buf(*call, f"http://{service.address}")

    assert status != 0


async def test_identities_without_a_client_ca_prevent_the_start(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('version = 1\n[identities."pipeline.test"]\ntenant = "acme"\n')

    with pytest.raises(Misconfigured, match="client_ca_file"):
        async with running(settings_with(auth={"policy_file": policy})):
            pass
