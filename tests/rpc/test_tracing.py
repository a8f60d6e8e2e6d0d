"""Traces through the server, received as a collector would."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from samserve.app import Running
from samserve.client import Client, Prompt
from samserve.errors import Misconfigured
from samserve.settings import LogSettings, TraceSettings
from samserve.telemetry import logs
from samserve.telemetry.tracing import open_tracing, otel

from harness.otlp.receiver import Receiver
from harness.otlp.spans import Span
from tests import pictures
from tests.conftest import serving, settings_with
from tests.support.waiting import BOUND_S

NAME = "samserve.v1.SegmentationService/"
CLICK = Prompt(points=[(20, 20)])
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@asynccontextmanager
async def traced(receiver: Receiver, **changes: object) -> AsyncIterator[tuple[Running, Client]]:
    """A server whose spans have all arrived when the block has ended, and a client."""
    trace = {"endpoint": f"http://{receiver.grpc_address}", "ratio": 1.0, **changes}
    settings = settings_with(trace=trace)
    async with serving(settings) as (service, _), Client(service.address) as client:
        yield service, client


def by_name(spans: list[Span], name: str) -> Span:
    (found,) = [span for span in spans if span.name == name]
    return found


def calls(receiver: Receiver) -> list[Span]:
    return [span for span in receiver.spans if span.name.startswith(NAME)]


async def test_stages_are_the_children_of_the_call(receiver: Receiver) -> None:
    async with traced(receiver) as (_, client):
        embedding = await client.embed(pictures.png(40, 50))
        await client.predict(embedding, [CLICK], request_id="one-click")

    spans = list(receiver.spans)
    call = by_name(spans, NAME + "Predict")
    children = [span for span in spans if span.parent_id == call.span_id]
    assert [span.name for span in sorted(children, key=lambda each: each.start_ns)] == [
        *("admit", "receive", "prepare", "prepare", "cache_get", "prepare", "decode"),
        *("postprocess", "encode_masks", "serialize", "send"),
    ]
    assert all(span.trace_id == call.trace_id for span in children)
    assert all(call.start_ns <= span.start_ns <= span.end_ns <= call.end_ns for span in children)
    attributes = call.attributes
    assert attributes["samserve.request_id"] == "one-click"
    assert attributes["samserve.model"] == "fake"
    assert (attributes["rpc.method"], attributes["rpc.grpc.status_code"]) == ("Predict", 0)
    assert call.resource["service.name"] == "samserve"


async def test_the_work_of_an_embed_is_a_part_of_the_call_that_began_it(
    receiver: Receiver,
) -> None:
    async with traced(receiver) as (_, client):
        await client.embed(pictures.png(40, 50))

    spans = list(receiver.spans)
    call = by_name(spans, NAME + "Embed")
    parts = {span.name for span in spans if span.parent_id == call.span_id}
    assert {"join", "cache_get", "decode_image", "resize", "encode", "cache_put"} <= parts


async def test_the_client_s_trace_goes_on(receiver: Receiver) -> None:
    provider = TracerProvider()
    exporter = OTLPSpanExporter(f"http://{receiver.grpc_address}")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with traced(receiver, ratio=0.0) as (_, client):
        with provider.get_tracer("application").start_as_current_span("annotate") as span:
            await client.embed(pictures.png(40, 50))
            theirs = trace.format_span_id(span.get_span_context().span_id)
        # Without a trace of the client the ratio counts, which is none.
        await client.embed(pictures.png(41, 50))
    provider.shutdown()

    (call,) = calls(receiver)
    assert call.parent_id == theirs
    assert by_name(list(receiver.spans), "annotate").trace_id == call.trace_id


@pytest.mark.parametrize(
    ("flag", "follow", "ratio", "recorded"),
    [
        ("01", True, 0.0, True),
        ("00", True, 1.0, False),
        ("01", False, 0.0, False),
        ("00", False, 1.0, True),
    ],
)
async def test_who_decides_what_is_sampled(
    receiver: Receiver, flag: str, follow: bool, ratio: float, recorded: bool
) -> None:
    from samserve.v1 import samserve_pb2 as pb  # noqa: PLC0415

    settings = {"endpoint": f"http://{receiver.grpc_address}", "ratio": ratio}
    async with serving(settings_with(trace={**settings, "follow_clients": follow})) as (_, stub):
        metadata = (("traceparent", PARENT + flag),)
        await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)

    assert [call.trace_id for call in calls(receiver)] == [PARENT.split("-")[1]] * recorded


async def test_logs_and_exemplars_carry_the_trace(
    receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(LogSettings(format="json"))
    async with traced(receiver) as (service, client):
        embedding = await client.embed(pictures.png(40, 50))
        await client.predict(embedding, [CLICK])
        registry = service.metrics.registry
        found = [
            sample.exemplar.labels["trace_id"]
            for family in registry.collect()
            for sample in family.samples
            if sample.name == "samserve_stage_seconds_bucket"
            and sample.labels["grpc_method"] == "Predict"
            and sample.exemplar
        ]

    call = by_name(list(receiver.spans), NAME + "Predict")
    assert set(found) == {call.trace_id}
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if '"call"' in line]
    assert [line["trace_id"] for line in lines if line.get("method") == "Predict"] == [
        call.trace_id
    ]


async def test_a_failed_call_is_a_failed_span(receiver: Receiver) -> None:
    async with traced(receiver) as (_, client):
        with pytest.raises(Exception, match="not a"):
            await client.embed(b"rubbish")

    (call,) = calls(receiver)
    # INVALID_ARGUMENT is the client's doing.
    assert (call.attributes["rpc.grpc.status_code"], call.status) == (3, "UNSET")


@pytest.mark.parametrize("answer", ["refused", "none"])
async def test_a_receiver_that_is_away_holds_up_neither_calls_nor_the_end(
    monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(otel, "_FLUSH_S", 0.05)
    # So long the exporter goes on by itself.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        if answer == "none":
            # Connections are made, and nothing reads from them.
            mute.listen()
        endpoint = f"http://127.0.0.1:{mute.getsockname()[1]}"
        settings = settings_with(trace={"endpoint": endpoint, "ratio": 1.0})
        async with asyncio.timeout(BOUND_S):
            async with serving(settings) as (service, _), Client(service.address) as client:
                for size in range(40, 43):
                    assert (await client.embed(pictures.png(size, 50))).id


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    settings = TraceSettings(endpoint="https://localhost:4317", ca_file=tmp_path / "ca.crt")

    with pytest.raises(Misconfigured, match=r"trace\.ca_file: No such file"):
        open_tracing(settings)
