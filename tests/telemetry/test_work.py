"""Metrics of work: queues, calls in flight, prompts, masks, candidates and event loop lag."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from samserve import app, images
from samserve.app import Running
from samserve.engines.fake import FakeEngine
from samserve.engines.onnx import OnnxEngine
from samserve.rpc import automask_requests
from samserve.telemetry.metrics import process as server_metrics
from samserve.telemetry.metrics.process import ServerMetrics
from samserve.v1 import samserve_pb2 as pb

from tests import sample_images
from tests.conftest import serving, settings_with
from tests.engine_choice import drawing_settings
from tests.support.engines import SMALL_MODEL
from tests.support.waiting import until
from tests.telemetry.scraping import values

WAITING, IN_FLIGHT = "samserve_queue_depth", "samserve_inflight_requests"


def waiting(service: Running) -> dict[str, float]:
    return {queue: count for (queue,), count in values(service, WAITING, "queue").items()}


def in_flight(service: Running) -> dict[str, float]:
    return {method: count for (method,), count in values(service, IN_FLIGHT, "grpc_method").items()}


def started(*calls: Any) -> asyncio.Future[Any]:
    """Start calls; return a future of their responses."""

    async def result(call: Any) -> Any:
        return [message async for message in call] if hasattr(call, "__aiter__") else await call

    return asyncio.gather(*map(result, calls))


@contextmanager
def blocked(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Iterator[None]:
    """Block calls of a function, which is called in a thread, while the block runs."""
    function, go = getattr(owner, name), threading.Event()

    def wait(*args: Any, **kwargs: Any) -> Any:
        go.wait(60)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, wait)
    try:
        yield
    finally:
        go.set()


async def test_queue_depth_counts_work_waiting_for_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "core_count", lambda: 1)
    automask = pb.AutoMaskRequest(image=sample_images.image())
    automask.options.points_per_side = 2
    async with serving(engine=FakeEngine(model=SMALL_MODEL)) as (service, stub):
        before = waiting(service)
        with (
            blocked(monkeypatch, images, "probe"),
            blocked(monkeypatch, automask_requests, "options"),
        ):
            calls = started(
                *(stub.Embed(pb.EmbedRequest(image=sample_images.image(seed=n))) for n in range(4)),
                *(stub.AutoMask(automask) for _ in range(3)),
            )
            await until(lambda: waiting(service) == {"workers": 3, "bulk_workers": 2})
            meanwhile = in_flight(service)
        await calls
        await until(lambda: not in_flight(service))
        after = waiting(service)

    assert meanwhile == {"Embed": 4, "AutoMask": 3}
    assert before == after == {}


async def test_queue_depth_counts_work_waiting_for_a_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go = asyncio.Event()
    go.set()
    run = OnnxEngine._run_alone

    async def wait(*args: Any) -> Any:
        await go.wait()
        return await run(*args)

    monkeypatch.setattr(OnnxEngine, "_run_alone", wait)
    async with serving(settings_with(**drawing_settings("onnx"))) as (service, stub):
        embedded = await stub.Embed(pb.EmbedRequest(image=sample_images.image()))
        predict = pb.PredictRequest(
            embedding_id=embedded.embedding.id, prompts=[sample_images.point_prompt()]
        )
        before = waiting(service)
        go.clear()
        calls = started(
            *(stub.Embed(pb.EmbedRequest(image=sample_images.image(seed=n))) for n in (1, 2)),
            *(stub.Predict(predict) for _ in range(3)),
        )
        await until(lambda: waiting(service) == {"encoder": 1, "decoder": 2})
        running = values(service, "samserve_engine_running", "network")
        go.set()
        await calls
        after = waiting(service)
        runs = values(service, "samserve_engine_runs_total", "network", "outcome")

    assert running == {("encoder",): 1, ("decoder",): 1}
    assert before == after == {}
    # One of each is the warm-up's.
    assert runs == {("encoder", "ok"): 4, ("decoder", "ok"): 4}


async def test_calls_in_flight_and_their_limits_are_exported() -> None:
    limits = {"embed": 5, "predict": 6, "automask": 7, "other": 8, "embedding_files": 9}
    admission = {f"max_concurrent_{name}": limit for name, limit in limits.items()}
    engine, go = FakeEngine(), asyncio.Event()
    async with serving(settings_with(admission=admission), engine=engine) as (service, stub):
        exported = values(service, "samserve_inflight_limit", "grpc_method")
        engine.hold(go)
        request = pb.EmbedRequest(image=sample_images.image())
        calls = started(*(stub.Embed(request) for _ in range(3)))
        await until(lambda: in_flight(service) == {"Embed": 3})
        failing = started(*(stub.Embed(pb.EmbedRequest(model="unknown")) for _ in range(2)))
        await asyncio.wait([failing])
        await until(lambda: in_flight(service) == {"Embed": 3})
        go.set()
        await calls
        await until(lambda: in_flight(service) == {})

    assert failing.exception()
    assert exported == {
        ("Embed",): 5,
        ("Predict",): 6,
        ("AutoMask",): 7,
        ("ListModels",): 8,
        ("PromoteModel",): 4,
        ("DeleteEmbedding",): 8,
        ("GetEmbedding",): 9,
        ("PutEmbedding",): 9,
    }


def histogram(service: Running, name: str) -> dict[str, tuple[float, float]]:
    """Return count and sum by method."""
    counts, sums = (values(service, f"{name}_{part}", "grpc_method") for part in ("count", "sum"))
    return {method: (count, sums.get((method,), 0)) for (method,), count in counts.items()}


async def test_prompts_and_masks_are_counted_per_call() -> None:
    async with serving(engine=FakeEngine(model=SMALL_MODEL)) as (service, stub):
        embedded = await stub.Embed(pb.EmbedRequest(image=sample_images.image()))
        embedding_id = embedded.embedding.id
        for prompts, multimask in ((1, pb.MULTIMASK_SINGLE), (3, pb.MULTIMASK_ALL)):
            request = pb.PredictRequest(embedding_id=embedding_id, multimask=multimask)
            request.prompts.extend([sample_images.point_prompt()] * prompts)
            await stub.Predict(request)
        # This invalid call has no masks; its prompts count.
        request.prompts[0].points[0].x = 1e6
        await asyncio.wait([started(stub.Predict(request))])
        automask = pb.AutoMaskRequest(embedding_id=embedding_id)
        automask.options.points_per_side = 8
        (found,) = await started(stub.AutoMask(automask))
        automask.options.pred_iou_thresh = 1.0
        await started(stub.AutoMask(automask))
        await until(lambda: not in_flight(service))
        prompts = histogram(service, "samserve_prompts_per_call")
        masks = histogram(service, "samserve_masks_per_call")

    assert found[-1].summary.mask_count > 0
    assert prompts == {"Predict": (3, 1 + 3 + 3)}
    # An AutoMask without masks counts with 0.
    assert masks == {"Predict": (2, 1 + 9), "AutoMask": (2, found[-1].summary.mask_count)}


async def test_candidate_counts_equal_those_of_automask_summaries() -> None:
    async with serving(engine=FakeEngine()) as (service, stub):
        automask = pb.AutoMaskRequest(image=sample_images.image(96, 128))
        automask.options.points_per_side = 4
        automask.options.crop_n_layers = 1
        automask.options.min_mask_region_area = 4
        automask.options.max_masks = 3
        responses = [await started(stub.AutoMask(automask)) for _ in range(2)]
        await until(lambda: not in_flight(service))
        counted = values(service, "samserve_automask_candidates_total", "filter", "direction")

    first, second = (messages[-1].summary.filters for (messages,) in responses)
    names = [each.filter for each in first]
    assert names == [
        *("pred_iou", "stability_score", "crop_edge"),
        *("box_nms", "crop_nms", "small_regions", "max_masks"),
    ]
    expected = {
        (each.filter, direction): getattr(each, f"{direction}_count")
        + getattr(again, f"{direction}_count")
        for each, again in zip(first, second, strict=True)
        for direction in ("in", "out")
    }
    assert counted == {of: count for of, count in expected.items() if count}
    assert expected["max_masks", "in"] > expected["max_masks", "out"] == 6


async def test_event_loop_lag_is_the_scheduling_delay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late_s = 1000.0
    now = [0.0]
    monkeypatch.setattr(server_metrics, "_LAG_INTERVAL_S", 0.001)
    monkeypatch.setattr(server_metrics, "time", SimpleNamespace(monotonic=lambda: now[0]))
    registry = CollectorRegistry()
    metrics = ServerMetrics(registry)

    def exported(part: str, **labels: str) -> float:
        found = registry.get_sample_value(f"samserve_event_loop_lag_seconds_{part}", labels)
        assert found is not None
        return found

    async with metrics.observing_lag():
        await until(lambda: exported("count") >= 3)
        punctual = exported("bucket", le="60.0"), exported("sum")
        now[0] += late_s
        await until(lambda: exported("sum") > 0)
        late = exported("count") - exported("bucket", le="60.0")
        await until(lambda: exported("count") >= 6)
    ended = exported("count")
    await asyncio.sleep(0.01)

    assert punctual[0] >= 3
    assert punctual[1] == 0
    # With a clock that stands still, each wait seems a millisecond too short.
    assert (late, exported("sum")) == (1, late_s - 0.001)
    assert exported("count") == ended


async def test_the_server_measures_its_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_metrics, "_LAG_INTERVAL_S", 0.001)
    async with serving(engine=FakeEngine(model=SMALL_MODEL)) as (service, _):
        count = "samserve_event_loop_lag_seconds_count"

        await until(lambda: values(service, count).get((), 0) >= 3)
