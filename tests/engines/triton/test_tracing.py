"""A trace from the client's application through the gateway into Triton."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from samserve.app import default_repository
from samserve.client import Client, Prompt

from harness.otlp import Receiver
from harness.triton.server import TritonServer
from tests import sample_images
from tests.conftest import serving, settings_with
from tests.engines.triton.services import STARTUP_S
from tests.support.waiting import until

# Triton 24.10 sometimes loses the trace context: it reads the header as a C string, which it is
# not. Such a request is not recorded, or in a trace of its own: calls are repeated until one is
# recorded.
_CALL = "samserve.v1.SegmentationService/Predict"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def triton(receiver: Receiver, tmp_path: Path) -> Iterator[TritonServer]:
    """A Triton that only records requests with a trace context."""
    config = (
        "mode=opentelemetry",
        "rate=1000000000",
        "level=TIMESTAMPS",
        f"opentelemetry,url={receiver.http_url}",
        "opentelemetry,bsp_schedule_delay=50",
    )
    server = TritonServer(
        model_repository=default_repository(),
        log=tmp_path / "triton.log",
        extra_args=[f"--trace-config={each}" for each in config],
    )
    with server:
        yield server


async def test_one_trace_from_the_application_to_the_network(
    receiver: Receiver, triton: TritonServer
) -> None:
    provider = TracerProvider()
    exporter = OTLPSpanExporter(f"http://{receiver.grpc_address}")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("application")
    numbers = itertools.count()
    settings = settings_with(
        engine={"kind": "triton"},
        triton={"url": triton.grpc_address, "startup_timeout_s": STARTUP_S},
        trace={"endpoint": f"http://{receiver.grpc_address}", "sampling_ratio": 0.0},
    )
    async with serving(settings) as (service, _), Client(service.address) as client:
        embedding = await client.embed(sample_images.png(40, 50))

        async def predict() -> bool:
            """Call Predict, and return whether the trace of any call so far is complete."""
            with tracer.start_as_current_span("predict"):
                request_id = f"predict-{next(numbers)}"
                await client.predict(embedding, [Prompt(points=[(20, 20)])], request_id=request_id)
            return linked(receiver.spans)

        await until(predict, poll_s=0.1)
    provider.shutdown()

    spans = receiver.spans
    traces = {span.trace_id for span in spans if span.name == "predict"}
    # A request that lost its context may have started a trace of its own.
    ended = {span.trace_id for span in spans if span.name == "InferRequest"} & traces
    computed = [span for span in spans if span.name == "compute" and span.trace_id in ended]
    path = ancestors(spans, computed[0])
    assert [span.name for span in path] == [
        *("compute", "sam_tiny_decoder", "InferRequest", "decode", _CALL, "predict")
    ]
    assert len({span.trace_id for span in path}) == 1
    assert attributes(path[1])["triton.request_id"] == attributes(path[4])["samserve.request_id"]
    # The Embed call had no trace context, so none of its spans were recorded.
    assert not [span for span in spans if "Embed" in span.name or "encoder" in span.name]


def linked(spans: Sequence[Span]) -> bool:
    """Return whether the trace of a call is complete, including Triton's last span."""
    traces = {span.trace_id for span in spans if span.name == "predict"}
    computed = {span.trace_id for span in spans if span.name == "compute"}
    ended = {span.trace_id for span in spans if span.name == "InferRequest"}
    return bool(traces & computed & ended)


def attributes(span: Span) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in span.attributes}


def ancestors(spans: Sequence[Span], span: Span) -> list[Span]:
    """Return the span, its parent, and so on."""
    by_id = {each.span_id: each for each in spans}
    path = [span]
    while path[-1].parent_span_id in by_id:
        path.append(by_id[path[-1].parent_span_id])
    return path
