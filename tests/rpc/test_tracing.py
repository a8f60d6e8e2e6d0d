"""Traces of a server, exported to memory, and in one test to a collector."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from samserve.app import Running
from samserve.client import Client, Prompt
from samserve.client.errors import ImageUnreadable
from samserve.errors import Misconfigured
from samserve.settings import LogSettings, TraceSettings
from samserve.telemetry import logs
from samserve.telemetry.tracing import open_tracing, otel
from samserve.v1 import samserve_pb2 as pb

from harness.otlp import Receiver
from tests import sample_images
from tests.conftest import serving, settings_with
from tests.support.waiting import TIMEOUT_S

NAME = "samserve.v1.SegmentationService/"
POINT_PROMPT = Prompt(points=[(20, 20)])
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The exporter of all servers that are started afterwards, whatever their endpoint."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(otel, "_exporter", lambda settings: exporter)
    return exporter


@asynccontextmanager
async def traced(
    ratio: float = 1.0, endpoint: str = "http://localhost:4317"
) -> AsyncIterator[tuple[Running, Client]]:
    """Run a server, and yield it with a client; all spans are exported when the block ends."""
    settings = settings_with(trace={"endpoint": endpoint, "sampling_ratio": ratio})
    async with serving(settings) as (service, _), Client(service.address) as client:
        yield service, client


def by_name(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    (found,) = [span for span in exporter.get_finished_spans() if span.name == name]
    return found


def children(exporter: InMemorySpanExporter, call: ReadableSpan) -> list[ReadableSpan]:
    return [
        span
        for span in exporter.get_finished_spans()
        if span.parent and span.parent.span_id == call.context.span_id
    ]


async def test_stages_are_child_spans_of_the_call(exporter: InMemorySpanExporter) -> None:
    async with traced() as (_, client):
        embedding = await client.embed(sample_images.png(40, 50))
        await client.predict(embedding, [POINT_PROMPT], request_id="one-point")

    call = by_name(exporter, NAME + "Predict")
    stages = sorted(children(exporter, call), key=lambda each: each.start_time)
    assert [span.name for span in stages] == [
        *("admit", "receive", "prepare", "prepare", "cache_get", "prepare", "decode"),
        *("postprocess", "encode_masks", "serialize", "send"),
    ]
    assert all(span.context.trace_id == call.context.trace_id for span in stages)
    assert all(
        call.start_time <= span.start_time <= span.end_time <= call.end_time for span in stages
    )
    attributes = call.attributes
    assert attributes["samserve.request_id"] == "one-point"
    assert attributes["samserve.model"] == "fake"
    assert (attributes["rpc.method"], attributes["rpc.grpc.status_code"]) == ("Predict", 0)
    assert call.resource.attributes["service.name"] == "samserve"


async def test_work_of_an_embed_is_traced_in_the_call_that_started_it(
    exporter: InMemorySpanExporter,
) -> None:
    async with traced() as (_, client):
        await client.embed(sample_images.png(40, 50))

    parts = {span.name for span in children(exporter, by_name(exporter, NAME + "Embed"))}
    assert {"join", "cache_get", "decode_image", "resize", "encode", "cache_put"} <= parts


async def test_spans_are_exported_as_otlp_over_grpc() -> None:
    with Receiver() as receiver:
        async with traced(endpoint=f"http://{receiver.grpc_address}") as (_, client):
            await client.embed(sample_images.png(40, 50))

    names = {span.name for span in receiver.spans}
    assert {NAME + "Embed", "encode"} <= names
    assert len({span.trace_id for span in receiver.spans}) == 1


async def test_trace_of_the_client_is_continued(exporter: InMemorySpanExporter) -> None:
    tracer = TracerProvider().get_tracer("application")
    async with traced(ratio=0.0) as (_, client):
        with tracer.start_as_current_span("annotate") as span:
            await client.embed(sample_images.png(40, 50))
        # Without a trace of the client the ratio applies, which is 0.
        await client.embed(sample_images.png(41, 50))

    call = by_name(exporter, NAME + "Embed")
    theirs = span.get_span_context()
    assert (call.parent.span_id, call.context.trace_id) == (theirs.span_id, theirs.trace_id)


@pytest.mark.parametrize(
    ("flag", "follow", "ratio", "recorded"),
    [
        ("01", True, 0.0, True),
        ("00", True, 1.0, False),
        ("01", False, 0.0, False),
        ("00", False, 1.0, True),
    ],
)
async def test_sampling_decision(
    exporter: InMemorySpanExporter, flag: str, follow: bool, ratio: float, recorded: bool
) -> None:
    settings = {"endpoint": "http://localhost:4317", "sampling_ratio": ratio}
    async with serving(settings_with(trace={**settings, "parent_based": follow})) as (_, stub):
        metadata = (("traceparent", PARENT + flag),)
        await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)

    spans = exporter.get_finished_spans()
    calls = [f"{span.context.trace_id:032x}" for span in spans if span.name.startswith(NAME)]
    assert calls == [PARENT.split("-")[1]] * recorded


async def test_logs_and_exemplars_have_the_trace_id(
    exporter: InMemorySpanExporter, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(LogSettings(format="json"))
    async with traced() as (service, client):
        embedding = await client.embed(sample_images.png(40, 50))
        await client.predict(embedding, [POINT_PROMPT])
        registry = service.metrics.registry
        found = [
            sample.exemplar.labels["trace_id"]
            for family in registry.collect()
            for sample in family.samples
            if sample.name == "samserve_stage_seconds_bucket"
            and sample.labels["grpc_method"] == "Predict"
            and sample.exemplar
        ]

    trace_id = f"{by_name(exporter, NAME + 'Predict').context.trace_id:032x}"
    assert set(found) == {trace_id}
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if '"rpc"' in line]
    assert [line["trace_id"] for line in lines if line.get("method") == "Predict"] == [trace_id]


async def test_failed_call_has_a_status_code_in_its_span(exporter: InMemorySpanExporter) -> None:
    async with traced() as (_, client):
        with pytest.raises(ImageUnreadable):
            await client.embed(sample_images.png(40, 50)[:100])

    call = by_name(exporter, NAME + "Embed")
    # INVALID_ARGUMENT is not an error of the server.
    assert call.attributes["rpc.grpc.status_code"] == 3
    assert call.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("collector", ["refuses connections", "does not respond"])
async def test_unavailable_collector_delays_neither_calls_nor_shutdown(
    monkeypatch: pytest.MonkeyPatch, collector: str
) -> None:
    monkeypatch.setattr(otel, "_FLUSH_S", 0.05)
    # The exporter would retry for this long.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        if collector == "does not respond":
            # Connections are accepted, and nothing reads from them.
            mute.listen()
        endpoint = f"http://127.0.0.1:{mute.getsockname()[1]}"
        settings = settings_with(trace={"endpoint": endpoint, "sampling_ratio": 1.0})
        async with asyncio.timeout(TIMEOUT_S):
            async with serving(settings) as (service, _), Client(service.address) as client:
                for size in range(40, 43):
                    assert (await client.embed(sample_images.png(size, 50))).id


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    settings = TraceSettings(endpoint="https://localhost:4317", ca_file=tmp_path / "ca.crt")

    with pytest.raises(Misconfigured, match=r"trace\.ca_file: No such file"):
        open_tracing(settings)
