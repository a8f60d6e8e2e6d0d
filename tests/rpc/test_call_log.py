"""The one line that every call leaves in the log: when, what is in it, and what never is."""

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
from samserve.calls import access_log
from samserve.engines.fake import FakeEngine
from samserve.rpc.methods import SERVICE
from samserve.scheduling.single_flight import SingleFlight
from samserve.settings import LogSettings
from samserve.stores.local.store import MemoryStore
from samserve.telemetry import logs
from samserve.types import Embedding, EmbeddingKey, Tier
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import pictures
from tests.conftest import UNLIMITED, serving, settings_with
from tests.rpc.errors import finish
from tests.rpc.moody import DECODE_S, ENCODE_S, Moody, click, embed, grid, named
from tests.samples import total
from tests.security import http2
from tests.security.credentials import KeyFile, bearer
from tests.support.clock import Clock
from tests.support.waiting import until

FORMATS = ("json", "console")
FIELDS = {
    *("event", "level", "timestamp", "method", "code", "reason", "duration_ms", "stages_ms"),
    *("model", "cache", "prompts", "masks", "received_bytes", "sent_bytes"),
    *("tenant", "caller", "request_id", "trace_id"),
}
TRACE = "0af7651916cd43dd8448eb211c80319c"

Caught = Callable[[], list[str]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of calls; only what the engine does moves it."""
    clock = Clock()
    monkeypatch.setattr(access_log, "_now", clock)
    return clock


def caught(capsys: pytest.CaptureFixture[str], **settings: Any) -> Caught:
    """Begin to log, as JSON unless it is said otherwise; gives lines so far, which are gone then.

    Not a fixture: what `capsys` has put in place of the standard error then is closed in the test.
    """
    logs.configure(LogSettings(**{"format": "json", **settings}))

    def lines() -> list[str]:
        return capsys.readouterr().err.splitlines()

    return lines


def calls(lines: list[str]) -> list[dict[str, Any]]:
    """Lines of calls; every line must be an object in JSON."""
    parsed = [json.loads(line) for line in lines]
    assert all(isinstance(each, dict) for each in parsed)
    return [each for each in parsed if each["event"] == "call"]


async def handled(service: Running, count: int) -> None:
    """Wait for the end of so many calls: a client may know of it before it is written down."""
    registry = service.metrics.registry
    await until(lambda: total(registry, "grpc_server_handled_total") >= count)


async def ended(call: Any) -> None:
    """Wait for the end of a call, whatever it is; of a stream, read all of it."""
    with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        await finish(call)


# By request id.
ENDS = {
    "well": ("Embed", "OK", None),
    "no-picture": ("Embed", "INVALID_ARGUMENT", "IMAGE_UNREADABLE"),
    "no-message": ("Predict", "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
    "no-request": ("Predict", "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
    "no-embedding": ("Predict", "NOT_FOUND", "EMBEDDING_NOT_FOUND"),
    "stranger": ("ListModels", "UNAUTHENTICATED", "UNAUTHENTICATED"),
    "forbidden": ("DeleteEmbedding", "PERMISSION_DENIED", "PERMISSION_DENIED"),
    "too-much": ("Predict", "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"),
    "breaks": ("Predict", "INTERNAL", "INTERNAL"),
    "away-midway": ("AutoMask", "UNAVAILABLE", "ENGINE_UNAVAILABLE"),
    "endless-left": ("AutoMask", "CANCELLED", None),
    "endless-cancelled": ("Embed", "CANCELLED", None),
    "endless-late": ("Embed", "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
}


@dataclass
class Script:
    """Makes the calls of `ENDS`."""

    engine: Moody
    stub: SegmentationServiceStub
    channel: grpc.aio.Channel
    key: str

    async def run(self) -> None:
        stub, how = self.stub, self.named
        embedded = (await stub.Embed(embed(), **how("well"))).embedding.id
        many = click(embedded)
        many.prompts.extend([pictures.click()] * 2)
        deletion = pb.DeleteEmbeddingRequest(embedding_id=embedded)
        rubbish = pb.EmbedRequest(image=pb.Image(encoded=b"rubbish"))
        await ended(stub.Embed(rubbish, **how("no-picture")))
        await ended(stub.Predict(click("f" * 64), **how("no-embedding")))
        await ended(stub.ListModels(pb.ListModelsRequest(), **how("stranger", key="")))
        await ended(stub.DeleteEmbedding(deletion, **how("forbidden")))
        await ended(stub.Predict(many, **how("too-much")))
        await ended(stub.Predict(click(embedded), **how("breaks")))
        await ended(stub.AutoMask(grid(embedded), **how("away-midway")))
        await self._raw("no-message")
        await self._raw("no-request", b"\xff\xff")
        leaving = stub.AutoMask(grid(embedded), **how("endless-left"))
        await leaving.read()
        await self._cancel(leaving, "endless-left")
        await self._cancel(stub.Embed(embed(1), **how("endless-cancelled")), "endless-cancelled")
        await ended(stub.Embed(embed(2), **{**how("endless-late"), "timeout": None}))

    def named(self, request_id: str, key: str | None = None) -> dict[str, Any]:
        """How a call is made: the deadlines of the server are for those who have none."""
        key = self.key if key is None else key
        credential = bearer(key) if key else ()
        return {"metadata": (("x-request-id", request_id), *credential), "timeout": 60}

    async def _raw(self, request_id: str, *messages: bytes) -> None:
        call = self.channel.stream_stream(f"/{SERVICE}/Predict")(**self.named(request_id))
        for message in messages:
            await call.write(message)
        await call.done_writing()
        await call.code()

    async def _cancel(self, call: Any, request_id: str) -> None:
        await self.engine.stuck(request_id)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call.code()


async def test_a_call_leaves_one_line_whatever_its_end(
    capsys: pytest.CaptureFixture[str], clock: Clock, tmp_path: Path
) -> None:
    logged = caught(capsys)
    keys, policy = KeyFile(tmp_path / "keys.toml"), tmp_path / "policy.toml"
    key = keys.add("acme", "embed", "predict", "automask")
    policy.write_text("version = 1\n[quotas.default]\nprompts = 2")
    settings = settings_with(
        auth={"keys_file": keys.path, "policy_file": policy}, deadlines={"embed_s": 0.1}
    )
    engine = Moody(clock)
    async with (
        serving(settings, engine=engine) as (service, stub),
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        await Script(engine, stub, channel, key).run()
        await handled(service, len(ENDS))

    lines = calls(logged())
    assert sorted(line["request_id"] for line in lines) == sorted(ENDS)
    by_id = {line["request_id"]: line for line in lines}
    told = {each: (line["method"], line["code"], line["reason"]) for each, line in by_id.items()}
    assert told == ENDS
    for line in lines:
        assert set(line) == FIELDS
        # Every number is rounded to a hundredth.
        rounding = 0.005 * (1 + len(line["stages_ms"]))
        assert abs(sum(line["stages_ms"].values()) - line["duration_ms"]) <= rounding
        known = line["request_id"] != "stranger"
        assert line["tenant"] == ("acme" if known else None)
        assert (line["caller"] is not None) == known
    assert by_id["well"]["stages_ms"]["encode"] == by_id["well"]["duration_ms"] == ENCODE_S * 1000
    # One decode went well, the next did not.
    assert by_id["away-midway"]["stages_ms"]["decode"] == DECODE_S * 1000
    sent = {each for each, line in by_id.items() if line["sent_bytes"]}
    assert sent == {"well", "away-midway", "endless-left"}


async def test_a_message_over_the_limit_looks_like_a_client_that_has_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """gRPC refuses it on its own, and cancels the handler; docs/operations.md says so."""
    logged = caught(capsys)
    async with serving(settings_with(limits={"request_bytes": 1000})) as (service, stub):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Embed(embed())
        await handled(service, 1)

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert [line["code"] for line in calls(logged())] == ["CANCELLED"]


async def test_a_line_says_what_was_asked_and_answered(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    key = keys.add("acme", "embed", "predict", "automask")
    (key_id,) = re.findall(r'id = "(\w+)"', keys.path.read_text())
    credential = {"metadata": bearer(key)}
    wish = embed()
    logged = caught(capsys)
    async with serving(settings_with(auth={"keys_file": keys.path})) as (service, stub):
        embedded = await stub.Embed(wish, **credential)
        several = click(embedded.embedding.id)
        several.prompts.append(pictures.click(10, 10))
        several.multimask = pb.MULTIMASK_ALL
        predicted = await stub.Predict(several, **credential)
        search = grid(embedded.embedding.id)
        found = [message async for message in stub.AutoMask(search, **credential)]
        listed = await stub.ListModels(pb.ListModelsRequest(), **credential)
        await handled(service, 4)

    lines = [facts_of(line) for line in calls(logged())]
    base = {"tenant": "acme", "caller": f"key:{key_id}", "code": "OK", "reason": None}
    base |= {"trace_id": None, "event": "call", "level": "info", "model": "fake", "cache": "memory"}
    nothing = {"model": None, "cache": None, "prompts": None, "masks": None}
    assert lines == [
        {**base, "method": "Embed", **nothing, "model": "fake", "cache": "miss"}
        | sizes(wish, embedded),
        {**base, "method": "Predict", "prompts": 2, "masks": 6} | sizes(several, predicted),
        {**base, "method": "AutoMask", "prompts": None, "masks": found[-1].summary.mask_count}
        | sizes(search, *found),
        {**base, "method": "ListModels", **nothing} | sizes(pb.ListModelsRequest(), listed),
    ]
    assert found[-1].summary.mask_count > 0


def facts_of(line: dict[str, Any]) -> dict[str, Any]:
    """What does not differ from run to run."""
    changing = ("timestamp", "duration_ms", "stages_ms", "request_id")
    return {name: value for name, value in line.items() if name not in changing}


def sizes(request: Any, *answers: Any) -> dict[str, int]:
    return {
        "received_bytes": request.ByteSize(),
        "sent_bytes": sum(answer.ByteSize() for answer in answers),
    }


class SharedStore(MemoryStore):
    """Says of what it finds that others had it."""

    @asynccontextmanager
    async def lease(self, key: EmbeddingKey, **how: Any) -> AsyncIterator[Embedding]:
        async with super().lease(key, **how) as embedding:
            yield replace(embedding, tier=Tier.SHARED)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set once somebody waits for an encode by its id."""
    event, join = asyncio.Event(), SingleFlight.join_existing

    def note(*words: Any) -> Any:
        event.set()
        return join(*words)

    monkeypatch.setattr(SingleFlight, "join_existing", note)
    return event


async def test_a_line_says_where_the_embedding_was(
    capsys: pytest.CaptureFixture[str], joined: asyncio.Event
) -> None:
    engine, go = FakeEngine(), asyncio.Event()
    logged = caught(capsys)
    first, other = embed(1), embed(2, prefetch=True)
    async with serving(engine=engine) as (service, stub):
        embedded = await stub.Embed(first, **named("miss"))
        await stub.Embed(first, **named("memory-again"))
        await stub.Predict(click(embedded.embedding.id), **named("memory-by-id"))
        await ended(stub.Predict(click("f" * 64), **named("miss-by-id")))
        engine.hold(go)
        pending = await stub.Embed(other, **named("pending"))
        waiting = stub.Predict(click(pending.embedding.id), **named("joined-by-id"))
        await joined.wait()
        go.set()
        await waiting
        await handled(service, 6)
    async with serving(store=SharedStore(64 << 20, 60)) as (service, stub):
        embedded = await stub.Embed(first, **named("miss-in-both"))
        await stub.Predict(click(embedded.embedding.id), **named("shared-by-id"))
        await handled(service, 2)

    lines = calls(logged())
    assert len(lines) == 8
    assert {line["request_id"]: line["cache"] for line in lines} == {
        **dict.fromkeys(("memory-again", "memory-by-id"), "memory"),
        **dict.fromkeys(("miss", "miss-by-id", "miss-in-both"), "miss"),
        "pending": "pending",
        "joined-by-id": "joined",
        "shared-by-id": "shared",
    }


async def test_the_ids_that_a_client_sends_are_in_the_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Not sampled: nothing is sent to anybody, but the trace goes on elsewhere.
    trace = {"endpoint": "http://127.0.0.1:1", "ratio": 0.0}
    metadata = (("x-request-id", "a/B:c-d_e.9"), ("traceparent", f"00-{TRACE}-b7ad6b7169203331-00"))
    logged = caught(capsys)
    async with serving(settings_with(trace=trace)) as (service, stub):
        call = stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
        await call
        await handled(service, 1)

    (line,) = calls(logged())
    assert (line["request_id"], line["trace_id"]) == ("a/B:c-d_e.9", TRACE)
    assert dict(await call.trailing_metadata())["x-request-id"] == line["request_id"]


async def test_the_console_s_lines_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logged = caught(capsys, format="console")
    async with serving() as (service, stub):
        logged()  # what an engine has said of its start
        await stub.Embed(embed(), **named("for-people"))
        await ended(stub.Embed(pb.EmbedRequest(), **named("for-others")))
        await handled(service, 2)

    well, failed = logged()
    for line in (well, failed):
        assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[info +\] call +\w+=", line)
        assert line.isprintable()
    pairs = set(well.split())
    assert {"method=Embed", "code=OK", "model=fake", "request_id=for-people"} <= pairs
    pairs = set(failed.split())
    assert {"code=INVALID_ARGUMENT", "request_id=for-others", "tenant=default"} <= pairs


async def test_calls_are_left_out_above_info_but_not_what_is_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logged = caught(capsys, level="warning")
    async with serving(engine=Moody()) as (service, stub):
        embedded = await stub.Embed(embed())
        await ended(stub.Predict(click(embedded.embedding.id), **named("breaks")))
        await handled(service, 2)

    (line,) = [json.loads(line) for line in logged()]
    assert (line["event"], line["level"], line["request_id"]) == (
        *("internal error", "error", "breaks"),
    )


# In base64 it looks the same wherever it begins, and in hexadecimal digits always.
PATTERN = b"PIXELS-OF-SOMEBODYS-FACE"
PICTURE = pb.Image(
    raw=pb.RawImage(
        data=PATTERN * 80, size=pb.ImageSize(height=20, width=32), layout=pb.RAW_LAYOUT_RGB
    )
)


@pytest.mark.parametrize("format_", FORMATS)
async def test_neither_pictures_nor_credentials_are_logged(
    format_: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    key, other = keys.add("acme", "embed", "predict"), KeyFile(tmp_path / "other.toml").add("acme")
    logged = caught(capsys, format=format_, level="debug")
    broken = pb.Image(encoded=b"\x89PNG\r\n\x1a\n" + PATTERN * 80)
    by_digest = pb.Image(encoded_sha256=PATTERN + b"12345678")
    async with serving(settings_with(auth={"keys_file": keys.path}), engine=Moody()) as (
        service,
        stub,
    ):
        embeds = [pb.EmbedRequest(image=image) for image in (PICTURE, broken, by_digest)]
        wrong_size = pb.EmbedRequest(image=PICTURE)
        wrong_size.image.raw.size.height = 21
        ahead = pb.EmbedRequest(image=PICTURE, prefetch=True)
        ahead.image.raw.layout = pb.RAW_LAYOUT_BGR
        for each in (key, other, key[:-1], key.upper()):
            metadata = bearer(each)
            for wish in (*embeds, wrong_size, pb.EmbedRequest(image=PICTURE, prefetch=True)):
                await ended(stub.Embed(wish, metadata=metadata))
            wish = pb.PredictRequest(image=PICTURE, prompts=[pictures.click()])
            for request_id in ("well", "breaks"):
                await ended(stub.Predict(wish, metadata=(("x-request-id", request_id), *metadata)))
        # What nobody waits for fails, too.
        await ended(stub.Embed(ahead, metadata=(("x-request-id", "breaks"), *bearer(key))))
        registry, name = service.metrics.registry, "samserve_prefetches_total"
        await until(lambda: total(registry, name, outcome="failed"))
        await handled(service, 4 * 7 + 1)

    text = "\n".join(logged())
    assert text.count("secret of the house") >= 2
    assert "Traceback" in text
    assert text.count("UNAUTHENTICATED") >= 3 * 7
    for picture in (PATTERN.decode(), PATTERN.hex(), base64.b64encode(PATTERN).decode()):
        assert picture.lower() not in text.lower()
    for each in (key, other):
        assert each.split("_", 2)[2].lower() not in text.lower()
    assert "bearer" not in text.lower()


FORGED = (
    'x"}\n{"event": "call", "method": "FORGED"}\r\n\x1b[31mFORGED\x00\u2028FORGED method=FORGED'
)
# What gRPC's own clients do not send: the first byte of each is no part of any name.
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
async def test_nobody_forges_lines(format_: str, capsys: pytest.CaptureFixture[str]) -> None:
    logged = caught(capsys, format=format_)
    async with serving() as (service, stub):
        logged()  # what an engine has said of its start
        for given in CONTROLS:
            await raw_call(service.address, given)
        for given in PRINTABLE:
            metadata = (("x-request-id", given), ("user-agent", "FORGED"), ("model", "FORGED"))
            await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
        await ended(stub.Embed(embed(model=FORGED)))
        embedded = await stub.Embed(embed())
        for embedding_id in (FORGED, embedded.embedding.id):
            await ended(stub.Predict(pb.PredictRequest(embedding_id=embedding_id, model=FORGED)))
            await ended(stub.Predict(click(embedding_id, model=FORGED)))
            await ended(stub.AutoMask(pb.AutoMaskRequest(embedding_id=embedding_id, model=FORGED)))
        await ended(stub.DeleteEmbedding(pb.DeleteEmbeddingRequest(embedding_id=FORGED)))
        count = len(CONTROLS) + len(PRINTABLE) + 9
        await handled(service, count)

    lines = logged()
    assert len(lines) == count
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if "FORGED" in line]
    if format_ == "json":
        made = [line["request_id"] for line in calls(lines)]
        assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in made)
        assert len(set(made)) == count


async def raw_call(address: str, request_id: str) -> None:
    """Call with a header that no client of gRPC would send; it is answered like any other."""
    reader, writer = await asyncio.open_connection(*address.rsplit(":", 1))
    headers = http2.call_headers(f"/{SERVICE}/ListModels", address, **{"x-request-id": request_id})
    end_stream, empty = 1, bytes(5)
    writer.write(http2.hello() + headers + http2.frame(http2.DATA, end_stream, 1, empty))
    assert await http2.status_of_stream(reader) == "OK"
    writer.close()
    await writer.wait_closed()


class FullDisk:
    """What the log is written to, without room."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


async def test_a_log_that_cannot_be_written_fails_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", FullDisk())
    logs.configure(LogSettings())
    async with serving() as (_, stub):
        embedded = await stub.Embed(embed())

    assert embedded.embedding.id
