"""The responses of /metrics: formats, exemplars, and no series from values of callers."""

from __future__ import annotations

import asyncio
import random
import re
import string
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from prometheus_client.samples import Sample
from samserve.app import Running
from samserve.calls.methods import METHODS
from samserve.engines.fake import FakeEngine
from samserve.rpc.methods import SERVICE
from samserve.settings import LogSettings
from samserve.telemetry import logs
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from harness.otlp import Receiver
from tests import sample_images
from tests.conftest import UNLIMITED, serving, settings_with
from tests.metric_values import total
from tests.monitoring.catalogue import LABELS
from tests.support.waiting import until
from tests.telemetry.scraping import OPENMETRICS, PLAIN, parsed, samples, scrape, values

TRACE = "0af7651916cd43dd8448eb211c80319c"
ACCEPTED = {
    None: PLAIN,
    "": PLAIN,
    "*/*": PLAIN,
    "text/html,application/xml;q=0.9,*/*;q=0.8": PLAIN,
    f"{PLAIN};version=0.0.4": PLAIN,
    OPENMETRICS: OPENMETRICS,
    f"{OPENMETRICS}; version=1.0.0; charset=utf-8": OPENMETRICS,
    # As sent by Prometheus 2.42 and by Prometheus 3.
    f"{OPENMETRICS};version=1.0.0,{OPENMETRICS};version=0.0.1;q=0.75,"
    f"{PLAIN};version=0.0.4;q=0.5,*/*;q=0.1": OPENMETRICS,
    f"{OPENMETRICS};version=1.0.0;escaping=allow-utf-8;q=0.6,"
    f"{PLAIN};version=0.0.4;q=0.2,*/*;q=0.1": OPENMETRICS,
}
Pair = tuple[Running, SegmentationServiceStub]


async def use(stub: SegmentationServiceStub, *metadata: tuple[str, str]) -> None:
    """Make one call of each kind."""
    embed = pb.EmbedRequest(image=sample_images.image())
    embedded = await stub.Embed(embed, metadata=metadata)
    predict = pb.PredictRequest(
        embedding_id=embedded.embedding.id, prompts=[sample_images.point_prompt()]
    )
    await stub.Predict(predict, metadata=metadata)
    automask = pb.AutoMaskRequest(embedding_id=embedded.embedding.id)
    automask.options.points_per_side = 2
    async for _ in stub.AutoMask(automask, metadata=metadata):
        pass


def by_series(found: list[Sample]) -> dict[tuple[str, ...], float]:
    """Return the values that do not change between scrapes, by name and labels."""
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): (
            sample.value
        )
        for sample in found
        if sample.name.startswith("grpc_server_") and not sample.name.endswith("_created")
    }


async def test_the_format_depends_on_the_accept_header(service: Pair) -> None:
    running, stub = service
    await use(stub)
    counted = by_series(samples(running, OPENMETRICS))
    handled = ("grpc_server_handled_total", "grpc_code=OK", "grpc_method=Predict")
    assert counted[*handled, f"grpc_service={SERVICE}", "grpc_type=unary"] == 1

    for accept, expected in ACCEPTED.items():
        status, content_type, text = scrape(running, accept)
        assert (status, content_type.split(";")[0]) == (200, expected), accept
        assert "charset=utf-8" in content_type
        assert text.endswith("# EOF\n") == (expected == OPENMETRICS)
        found = [sample for family in parsed(content_type, text) for sample in family.samples]
        assert by_series(found) == counted


@pytest.mark.parametrize(
    "accept", [f"{OPENMETRICS}; version=abc", f"{PLAIN}; version=1..0", f"{OPENMETRICS};version=é"]
)
async def test_an_invalid_version_in_the_accept_header_is_ignored(
    accept: str, service: Pair
) -> None:
    status, content_type, text = scrape(service[0], accept.encode().decode("latin-1"))

    assert status == 200
    assert parsed(content_type, text)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def exemplars(found: list[Sample]) -> dict[str, set[str]]:
    """Return the trace ids of exemplars by metric."""
    traces = defaultdict(set)
    for sample in found:
        if sample.exemplar:
            (name,) = sample.exemplar.labels
            assert name == "trace_id"
            traces[sample.name].add(sample.exemplar.labels[name])
    return dict(traces)


@pytest.mark.parametrize(("flag", "traces"), [("01", {TRACE}), ("00", set[str]())])
async def test_exemplars_name_recorded_traces(
    flag: str, traces: set[str], receiver: Receiver
) -> None:
    trace = {"endpoint": f"http://{receiver.grpc_address}", "sampling_ratio": 0.0}
    async with serving(settings_with(trace=trace)) as (service, stub):
        await use(stub, ("traceparent", f"00-{TRACE}-b7ad6b7169203331-{flag}"))
        found = exemplars(samples(service, OPENMETRICS))
        classic = scrape(service, PLAIN)[2]

    kinds = ("grpc_server_handling", "samserve_call", "samserve_stage")
    assert found == ({f"{kind}_seconds_bucket": traces for kind in kinds} if traces else {})
    assert {span.trace_id.hex() for span in receiver.spans} == traces
    assert TRACE not in classic


async def test_exported_metrics_are_in_the_catalogue(service: Pair) -> None:
    running, stub = service
    await use(stub)

    own = [
        sample
        for sample in samples(running, PLAIN)
        if sample.name.startswith(("samserve_", "grpc_")) and not sample.name.endswith("_created")
    ]

    assert {(sample.name, frozenset(sample.labels)) for sample in own} <= {*LABELS.items()}


class Noise:
    """Calls that contain only random words."""

    def __init__(self, stub: SegmentationServiceStub, channel: grpc.aio.Channel, seed: int) -> None:
        self._stub = stub
        self._channel = channel
        self._random = random.Random(seed)
        self.words: set[str] = set()

    def word(self) -> str:
        word = "".join(self._random.choices(string.ascii_letters, k=16))
        self.words.add(word)
        return word

    async def call(self, number: int) -> None:
        """Make one of several kinds of calls; all of them fail."""
        metadata = (
            ("x-request-id", self.word()),
            ("user-agent", self.word()),
            ("traceparent", f"00-{self._random.getrandbits(128):032x}-b7ad6b7169203331-01"),
            (self.word().lower(), self.word()),
        )
        kinds = [self._unknown_model, self._predict, self._automask]
        kinds += [self._delete, self._invalid_image, self._unknown_method]
        with suppress(grpc.aio.AioRpcError):
            await kinds[number % len(kinds)](metadata)

    async def _unknown_model(self, metadata: Any) -> None:
        prefetch = self._random.random() < 0.5
        request = pb.EmbedRequest(
            image=sample_images.image(8, 8), model=self.word(), prefetch=prefetch
        )
        await self._stub.Embed(request, metadata=metadata)

    async def _predict(self, metadata: Any) -> None:
        request = pb.PredictRequest(embedding_id=self.word(), model=self.word())
        request.prompts.append(sample_images.point_prompt())
        await self._stub.Predict(request, metadata=metadata)

    async def _automask(self, metadata: Any) -> None:
        request = pb.AutoMaskRequest(embedding_id=self.word(), model=self.word())
        async for _ in self._stub.AutoMask(request, metadata=metadata):
            pass

    async def _delete(self, metadata: Any) -> None:
        request = pb.DeleteEmbeddingRequest(embedding_id=self.word())
        await self._stub.DeleteEmbedding(request, metadata=metadata)

    async def _invalid_image(self, metadata: Any) -> None:
        image = pb.Image(encoded=self.word().encode())
        await self._stub.Embed(pb.EmbedRequest(image=image), metadata=metadata)

    async def _unknown_method(self, metadata: Any) -> None:
        path = f"/{self._random.choice([SERVICE, self.word()])}/{self.word()}"
        await self._channel.unary_unary(path)(self.word().encode(), metadata=metadata)


async def test_values_from_clients_create_no_series() -> None:
    logs.configure(LogSettings(level="error"))
    async with (
        serving() as (service, stub),
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        await use(stub)
        noise = Noise(stub, channel, seed=0)
        for number in range(12):
            await noise.call(number)
        before = await series(service, count=3 + 10)
        for start in range(0, 240, 20):
            await asyncio.gather(*map(noise.call, range(start, start + 20)))
        # A sixth of the calls is to unknown methods.
        after = await series(service, count=3 + 10 + 240 - 240 // 6)
        text = scrape(service)[2]

    # Whether a call queues for a thread is random.
    assert {each for each in after - before if ("stage", "queue") not in each[1]} == set()
    assert not noise.words & set(re.findall("[A-Za-z]+", text))


async def series(service: Running, count: int) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Return names and labels once so many calls have been recorded."""
    registry = service.metrics.registry
    await until(lambda: total(registry, "grpc_server_handled_total") >= count)
    return {(each.name, tuple(sorted(each.labels.items()))) for each in samples(service, PLAIN)}


async def test_every_method_has_series_before_its_first_call(service: Pair) -> None:
    found = by_series(samples(service[0], PLAIN))

    started = [key for key in found if key[0] == "grpc_server_started_total"]
    assert {key[1] for key in started} == {f"grpc_method={method.name}" for method in METHODS}
    assert not any(found[key] for key in started)


async def test_served_models_and_transport_are_exported() -> None:
    engine = FakeEngine()
    async with serving(engine=engine) as (service, _):
        models = values(service, "samserve_model_info", "model", "digest")
        transports = values(service, "samserve_engine_transport", "transport")

    assert models == {(model.name, model.digest): 1 for model in engine.models.values()}
    assert transports == {(engine.transport.value,): 1}
