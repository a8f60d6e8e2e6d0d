"""The log line of every call: when it is written, its fields, and what it never contains."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from samserve.app import Running
from samserve.cache.local.cache import LocalCache
from samserve.calls import access_log
from samserve.engines.fake import FakeEngine
from samserve.rpc.methods import SERVICE
from samserve.scheduling.single_flight import SingleFlight
from samserve.settings import LogSettings
from samserve.telemetry import logs
from samserve.types import Embedding, EmbeddingKey, Tier
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import sample_images
from tests.conftest import UNLIMITED, serving, settings_with
from tests.metric_values import total
from tests.rpc.errors import finish
from tests.rpc.scripted_engine import (
    DECODE_S,
    ENCODE_S,
    ScriptedEngine,
    automask_request,
    embed_request,
    predict_request,
    with_id,
)
from tests.security import http2
from tests.security.credentials import KeyFile, bearer
from tests.support.clock import Clock
from tests.support.waiting import until

FORMATS = ("json", "console")
FIELDS = {
    *("event", "level", "timestamp", "method", "code", "reason", "duration_ms", "stages_ms"),
    *("model", "version", "cache", "prompts", "masks", "received_bytes", "sent_bytes", "protocol"),
    *("tenant", "caller", "request_id", "trace_id"),
}
TRACE = "0af7651916cd43dd8448eb211c80319c"

Caught = Callable[[], list[str]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of calls; only the engine advances it."""
    clock = Clock()
    monkeypatch.setattr(access_log, "_now", clock)
    return clock


def caught(capsys: pytest.CaptureFixture[str], **settings: Any) -> Caught:
    """Configure logging, as JSON by default; return a function that takes the lines so far.

    Not a fixture: `capsys` closes the stream that replaces standard error then during the test.
    """
    logs.configure(LogSettings(**{"format": "json", **settings}))

    def lines() -> list[str]:
        return capsys.readouterr().err.splitlines()

    return lines


def calls(lines: list[str]) -> list[dict[str, Any]]:
    """Return the lines of calls; every line must be a JSON object."""
    parsed = [json.loads(line) for line in lines]
    assert all(isinstance(each, dict) for each in parsed)
    return [each for each in parsed if each["event"] == "rpc"]


async def handled(service: Running, count: int) -> None:
    """Wait until so many calls are recorded: a client may see the end of a call earlier."""
    registry = service.metrics.registry
    await until(lambda: total(registry, "grpc_server_handled_total") >= count)


async def ended(call: Any) -> None:
    """Wait for the end of a call, whatever its status; read a stream to its end."""
    with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        await finish(call)


# By request id.
EXPECTED = {
    "well": ("Embed", "OK", None),
    "no-image": ("Embed", "INVALID_ARGUMENT", "IMAGE_UNREADABLE"),
    "no-message": ("Predict", "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
    "no-request": ("Predict", "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
    "no-embedding": ("Predict", "NOT_FOUND", "EMBEDDING_NOT_FOUND"),
    "unauthenticated": ("ListModels", "UNAUTHENTICATED", "UNAUTHENTICATED"),
    "forbidden": ("DeleteEmbedding", "PERMISSION_DENIED", "PERMISSION_DENIED"),
    "too-much": ("Predict", "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"),
    "breaks": ("Predict", "INTERNAL", "INTERNAL"),
    "unavailable-midway": ("AutoMask", "UNAVAILABLE", "ENGINE_UNAVAILABLE"),
    "blocked-midway": ("AutoMask", "CANCELLED", None),
    "blocked-cancelled": ("Embed", "CANCELLED", None),
    "blocked-late": ("Embed", "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
}


@dataclass
class Script:
    """Makes the calls of `EXPECTED`."""

    engine: ScriptedEngine
    stub: SegmentationServiceStub
    channel: grpc.aio.Channel
    key: str

    async def run(self) -> None:
        stub, options = self.stub, self.with_id
        embedded = (await stub.Embed(embed_request(), **options("well"))).embedding.id
        many = predict_request(embedded)
        many.prompts.extend([sample_images.point_prompt()] * 2)
        deletion = pb.DeleteEmbeddingRequest(embedding_id=embedded)
        garbage = pb.EmbedRequest(image=pb.Image(encoded=b"garbage"))
        await ended(stub.Embed(garbage, **options("no-image")))
        await ended(stub.Predict(predict_request("f" * 64), **options("no-embedding")))
        await ended(stub.ListModels(pb.ListModelsRequest(), **options("unauthenticated", key="")))
        await ended(stub.DeleteEmbedding(deletion, **options("forbidden")))
        await ended(stub.Predict(many, **options("too-much")))
        await ended(stub.Predict(predict_request(embedded), **options("breaks")))
        await ended(stub.AutoMask(automask_request(embedded), **options("unavailable-midway")))
        await self._raw("no-message")
        await self._raw("no-request", b"\xff\xff")
        search = stub.AutoMask(automask_request(embedded), **options("blocked-midway"))
        await search.read()
        await self._cancel(search, "blocked-midway")
        await self._cancel(
            stub.Embed(embed_request(1), **options("blocked-cancelled")), "blocked-cancelled"
        )
        await ended(stub.Embed(embed_request(2), **{**options("blocked-late"), "timeout": None}))

    def with_id(self, request_id: str, key: str | None = None) -> dict[str, Any]:
        """Return the arguments of a call, with a deadline, so that the server's is not used."""
        key = self.key if key is None else key
        credential = bearer(key) if key else ()
        return {"metadata": (("x-request-id", request_id), *credential), "timeout": 60}

    async def _raw(self, request_id: str, *messages: bytes) -> None:
        call = self.channel.stream_stream(f"/{SERVICE}/Predict")(**self.with_id(request_id))
        for message in messages:
            await call.write(message)
        await call.done_writing()
        await call.code()

    async def _cancel(self, call: Any, request_id: str) -> None:
        await self.engine.wait_until_blocked(request_id)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call.code()


async def test_every_call_logs_one_line(
    capsys: pytest.CaptureFixture[str], clock: Clock, tmp_path: Path
) -> None:
    logged = caught(capsys)
    keys, policy = KeyFile(tmp_path / "keys.toml"), tmp_path / "policy.toml"
    key = keys.add("acme", "embed", "predict", "automask")
    policy.write_text("version = 1\n[quotas.default]\nmax_prompts = 2")
    settings = settings_with(
        auth={"api_keys_file": keys.path, "policy_file": policy}, deadlines={"embed_s": 0.1}
    )
    engine = ScriptedEngine(clock)
    async with (
        serving(settings, engine=engine) as (service, stub),
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        await Script(engine, stub, channel, key).run()
        await handled(service, len(EXPECTED))

    lines = calls(logged())
    assert sorted(line["request_id"] for line in lines) == sorted(EXPECTED)
    by_id = {line["request_id"]: line for line in lines}
    found = {each: (line["method"], line["code"], line["reason"]) for each, line in by_id.items()}
    assert found == EXPECTED
    for line in lines:
        assert set(line) == FIELDS
        # Every number is rounded to 0.01.
        rounding = 0.005 * (1 + len(line["stages_ms"]))
        assert abs(sum(line["stages_ms"].values()) - line["duration_ms"]) <= rounding
        known = line["request_id"] != "unauthenticated"
        assert line["tenant"] == ("acme" if known else None)
        assert (line["caller"] is not None) == known
    assert by_id["well"]["stages_ms"]["encode"] == by_id["well"]["duration_ms"] == ENCODE_S * 1000
    # One decode succeeded, the next failed.
    assert by_id["unavailable-midway"]["stages_ms"]["decode"] == DECODE_S * 1000
    sent = {each for each, line in by_id.items() if line["sent_bytes"]}
    assert sent == {"well", "unavailable-midway", "blocked-midway"}


async def test_message_over_the_limit_is_logged_as_cancelled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """gRPC rejects it, and cancels the handler, as documented in docs/operations.md."""
    logged = caught(capsys)
    async with serving(settings_with(limits={"max_request_bytes": 1000})) as (service, stub):
        with pytest.raises(grpc.aio.AioRpcError) as rejected:
            await stub.Embed(embed_request())
        await handled(service, 1)

    assert rejected.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert [line["code"] for line in calls(logged())] == ["CANCELLED"]


async def test_line_describes_request_and_response(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    key = keys.add("acme", "embed", "predict", "automask")
    (key_id,) = re.findall(r'id = "(\w+)"', keys.path.read_text())
    credential = {"metadata": bearer(key)}
    request = embed_request()
    logged = caught(capsys)
    async with serving(settings_with(auth={"api_keys_file": keys.path})) as (service, stub):
        embedded = await stub.Embed(request, **credential)
        several = predict_request(embedded.embedding.id)
        several.prompts.append(sample_images.point_prompt(10, 10))
        several.multimask = pb.MULTIMASK_ALL
        predicted = await stub.Predict(several, **credential)
        search = automask_request(embedded.embedding.id)
        found = [message async for message in stub.AutoMask(search, **credential)]
        listed = await stub.ListModels(pb.ListModelsRequest(), **credential)
        await handled(service, 4)

    lines = [facts_of(line) for line in calls(logged())]
    (digest,) = {model.digest for model in listed.models if model.name == "fake"}
    # The first digits of the weights' digest.
    version = digest[:12]
    base = {"tenant": "acme", "caller": f"key:{key_id}", "code": "OK", "reason": None}
    base |= {
        "protocol": "grpc",
        "trace_id": None,
        "event": "rpc",
        "level": "info",
        "model": "fake",
        "version": version,
        "cache": "local",
    }
    nothing = {"model": None, "version": None, "cache": None, "prompts": None, "masks": None}
    assert lines == [
        {
            **base,
            "method": "Embed",
            **nothing,
            "model": "fake",
            "version": version,
            "cache": "miss",
        }
        | sizes(request, embedded),
        {**base, "method": "Predict", "prompts": 2, "masks": 6} | sizes(several, predicted),
        {**base, "method": "AutoMask", "prompts": None, "masks": found[-1].summary.mask_count}
        | sizes(search, *found),
        {**base, "method": "ListModels", **nothing} | sizes(pb.ListModelsRequest(), listed),
    ]
    assert found[-1].summary.mask_count > 0


def facts_of(line: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that are the same in every run."""
    varying = ("timestamp", "duration_ms", "stages_ms", "request_id")
    return {name: value for name, value in line.items() if name not in varying}


def sizes(request: Any, *responses: Any) -> dict[str, int]:
    return {
        "received_bytes": request.ByteSize(),
        "sent_bytes": sum(response.ByteSize() for response in responses),
    }


class SharedTier(LocalCache):
    """Reports that embeddings were found in the shared tier."""

    @asynccontextmanager
    async def lease(self, key: EmbeddingKey, **options: Any) -> AsyncIterator[Embedding]:
        async with super().lease(key, **options) as embedding:
            yield replace(embedding, tier=Tier.SHARED)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set once a call waits for an encode by its id."""
    event, join = asyncio.Event(), SingleFlight.join_existing

    def join_existing(*arguments: Any) -> Any:
        event.set()
        return join(*arguments)

    monkeypatch.setattr(SingleFlight, "join_existing", join_existing)
    return event


async def test_line_names_the_cache_result(
    capsys: pytest.CaptureFixture[str], joined: asyncio.Event
) -> None:
    engine, go = FakeEngine(), asyncio.Event()
    logged = caught(capsys)
    first, other = embed_request(1), embed_request(2, prefetch=True)
    async with serving(engine=engine) as (service, stub):
        embedded = await stub.Embed(first, **with_id("miss"))
        await stub.Embed(first, **with_id("local-again"))
        await stub.Predict(predict_request(embedded.embedding.id), **with_id("local-by-id"))
        await ended(stub.Predict(predict_request("f" * 64), **with_id("miss-by-id")))
        engine.hold(go)
        pending = await stub.Embed(other, **with_id("pending"))
        waiting = stub.Predict(predict_request(pending.embedding.id), **with_id("joined-by-id"))
        await joined.wait()
        go.set()
        await waiting
        await handled(service, 6)
    async with serving(cache=SharedTier(64 << 20, 60)) as (service, stub):
        embedded = await stub.Embed(first, **with_id("miss-in-both"))
        await stub.Predict(predict_request(embedded.embedding.id), **with_id("shared-by-id"))
        await handled(service, 2)

    lines = calls(logged())
    assert len(lines) == 8
    assert {line["request_id"]: line["cache"] for line in lines} == {
        **dict.fromkeys(("local-again", "local-by-id"), "local"),
        **dict.fromkeys(("miss", "miss-by-id", "miss-in-both"), "miss"),
        "pending": "pending",
        "joined-by-id": "joined",
        "shared-by-id": "shared",
    }


async def test_line_has_the_ids_of_the_client(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Not sampled: nothing is exported, but the trace has an id.
    trace = {"endpoint": "http://127.0.0.1:1", "sampling_ratio": 0.0}
    metadata = (("x-request-id", "a/B:c-d_e.9"), ("traceparent", f"00-{TRACE}-b7ad6b7169203331-00"))
    logged = caught(capsys)
    async with serving(settings_with(trace=trace)) as (service, stub):
        call = stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
        await call
        await handled(service, 1)

    (line,) = calls(logged())
    assert (line["request_id"], line["trace_id"]) == ("a/B:c-d_e.9", TRACE)
    assert dict(await call.trailing_metadata())["x-request-id"] == line["request_id"]


async def test_console_lines_are_human_readable(capsys: pytest.CaptureFixture[str]) -> None:
    logged = caught(capsys, format="console")
    async with serving() as (service, stub):
        logged()  # drop the lines of the start
        await stub.Embed(embed_request(), **with_id("valid"))
        await ended(stub.Embed(pb.EmbedRequest(), **with_id("invalid")))
        await handled(service, 2)

    well, failed = logged()
    for line in (well, failed):
        assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[info +\] rpc +\w+=", line)
        assert line.isprintable()
    pairs = set(well.split())
    assert {"method=Embed", "code=OK", "model=fake", "request_id=valid"} <= pairs
    pairs = set(failed.split())
    assert {"code=INVALID_ARGUMENT", "request_id=invalid", "tenant=default"} <= pairs


async def test_level_warning_drops_calls_but_not_errors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logged = caught(capsys, level="warning")
    async with serving(engine=ScriptedEngine()) as (service, stub):
        embedded = await stub.Embed(embed_request())
        await ended(stub.Predict(predict_request(embedded.embedding.id), **with_id("breaks")))
        await handled(service, 2)

    (line,) = [json.loads(line) for line in logged()]
    assert (line["event"], line["level"], line["request_id"]) == (
        *("internal error", "error", "breaks"),
    )


# A multiple of three bytes, so that its base64 form is the same at every repetition.
PATTERN = b"PIXELS-OF-A-PERSONS-FACE"
IMAGE = pb.Image(
    raw=pb.RawImage(
        data=PATTERN * 80, size=pb.ImageSize(height=20, width=32), layout=pb.RAW_LAYOUT_RGB
    )
)


@pytest.mark.parametrize("format_", FORMATS)
async def test_images_and_credentials_are_not_logged(
    format_: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    key, other = keys.add("acme", "embed", "predict"), KeyFile(tmp_path / "other.toml").add("acme")
    logged = caught(capsys, format=format_, level="debug")
    broken = pb.Image(encoded=b"\x89PNG\r\n\x1a\n" + PATTERN * 80)
    by_digest = pb.Image(encoded_sha256=PATTERN + b"12345678")
    async with serving(
        settings_with(auth={"api_keys_file": keys.path}), engine=ScriptedEngine()
    ) as (
        service,
        stub,
    ):
        embeds = [pb.EmbedRequest(image=image) for image in (IMAGE, broken, by_digest)]
        wrong_size = pb.EmbedRequest(image=IMAGE)
        wrong_size.image.raw.size.height = 21
        ahead = pb.EmbedRequest(image=IMAGE, prefetch=True)
        ahead.image.raw.layout = pb.RAW_LAYOUT_BGR
        for each in (key, other, key[:-1], key.upper()):
            metadata = bearer(each)
            for embed in (*embeds, wrong_size, pb.EmbedRequest(image=IMAGE, prefetch=True)):
                await ended(stub.Embed(embed, metadata=metadata))
            predict = pb.PredictRequest(image=IMAGE, prompts=[sample_images.point_prompt()])
            for request_id in ("well", "breaks"):
                ids = ("x-request-id", request_id)
                await ended(stub.Predict(predict, metadata=(ids, *metadata)))
        # A prefetch fails as well.
        await ended(stub.Embed(ahead, metadata=(("x-request-id", "breaks"), *bearer(key))))
        registry, name = service.metrics.registry, "samserve_prefetches_total"
        await until(lambda: total(registry, name, outcome="failed"))
        await handled(service, 4 * 7 + 1)

    text = "\n".join(logged())
    assert text.count("internal secret") >= 2
    assert "Traceback" in text
    assert text.count("UNAUTHENTICATED") >= 3 * 7
    for pixels in (PATTERN.decode(), PATTERN.hex(), base64.b64encode(PATTERN).decode()):
        assert pixels.lower() not in text.lower()
    for each in (key, other):
        assert each.split("_", 2)[2].lower() not in text.lower()
    assert "bearer" not in text.lower()


FORGED = 'x"}\n{"event": "rpc", "method": "FORGED"}\r\n\x1b[31mFORGED\x00\u2028FORGED method=FORGED'
# gRPC's own clients do not send these.
CONTROLS = ["a\nFORGED", "a\rFORGED", "a\0FORGED", "a\x1b[31mFORGED", "a\tFORGED", "\x7fFORGED"]
PRINTABLE = [
    "a FORGED",
    "a=FORGED",
    'a"FORGED',
    "a'FORGED",
    "a\\nFORGED",
    "FORGED" * 22,
    "{FORGED}",
]


@pytest.mark.parametrize("format_", FORMATS)
async def test_clients_cannot_forge_log_lines(
    format_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logged = caught(capsys, format=format_)
    async with serving() as (service, stub):
        logged()  # drop the lines of the start
        for given in CONTROLS:
            await raw_call(service.address, given)
        for given in PRINTABLE:
            metadata = (("x-request-id", given), ("user-agent", "FORGED"), ("model", "FORGED"))
            await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
        await ended(stub.Embed(embed_request(model=FORGED)))
        embedded = await stub.Embed(embed_request())
        for embedding_id in (FORGED, embedded.embedding.id):
            await ended(stub.Predict(pb.PredictRequest(embedding_id=embedding_id, model=FORGED)))
            await ended(stub.Predict(predict_request(embedding_id, model=FORGED)))
            await ended(stub.AutoMask(pb.AutoMaskRequest(embedding_id=embedding_id, model=FORGED)))
        await ended(stub.DeleteEmbedding(pb.DeleteEmbeddingRequest(embedding_id=FORGED)))
        count = len(CONTROLS) + len(PRINTABLE) + 9
        await handled(service, count)

    lines = logged()
    assert len(lines) == count
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if "FORGED" in line]
    if format_ == "json":
        ids = [line["request_id"] for line in calls(lines)]
        assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in ids)
        assert len(set(ids)) == count


async def raw_call(address: str, request_id: str) -> None:
    """Make a call with a header that no gRPC client would send; it must succeed."""
    reader, writer = await asyncio.open_connection(*address.rsplit(":", 1))
    headers = http2.call_headers(f"/{SERVICE}/ListModels", address, **{"x-request-id": request_id})
    end_stream, empty = 1, bytes(5)
    writer.write(http2.hello() + headers + http2.frame(http2.DATA, end_stream, 1, empty))
    assert await http2.status_of_stream(reader) == "OK"
    writer.close()
    await writer.wait_closed()


class FullDisk:
    """An output stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


async def test_calls_succeed_if_the_log_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", FullDisk())
    logs.configure(LogSettings())
    async with serving() as (_, stub):
        embedded = await stub.Embed(embed_request())

    assert embedded.embedding.id
