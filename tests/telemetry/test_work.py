"""What metrics say of work: what waits and is in flight, how much is asked, how late things are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from samserve import app
from samserve.app import Running
from samserve.engines.fake import FakeEngine
from samserve.engines.onnx import OnnxEngine
from samserve.rpc import automask_requests
from samserve.segmentation import ids
from samserve.telemetry.metrics import process as server_metrics
from samserve.telemetry.metrics.process import ServerMetrics
from samserve.v1 import samserve_pb2 as pb

from tests import pictures
from tests.conftest import serving, settings_with
from tests.support.engines import SMALL_MODEL
from tests.support.waiting import until
from tests.telemetry.scraping import values

WAITING, IN_FLIGHT = "samserve_queue_waiting", "samserve_inflight_requests"


def waiting(service: Running) -> dict[str, float]:
    return {queue: count for (queue,), count in values(service, WAITING, "queue").items()}


def in_flight(service: Running) -> dict[str, float]:
    return {method: count for (method,), count in values(service, IN_FLIGHT, "grpc_method").items()}


def started(*calls: Any) -> asyncio.Future[Any]:
    """Give the answers of calls that run meanwhile."""

    async def answer(call: Any) -> Any:
        return [message async for message in call] if hasattr(call, "__aiter__") else await call

    return asyncio.gather(*map(answer, calls))


@contextmanager
def blocked(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Iterator[None]:
    """Let what calls a function in a thread stay there for the length of the block."""
    function, go = getattr(owner, name), threading.Event()

    def wait(*args: Any, **kwargs: Any) -> Any:
        go.wait(60)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, wait)
    try:
        yield
    finally:
        go.set()


async def test_what_waits_for_a_thread_is_seen_while_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "core_count", lambda: 1)
    search = pb.AutoMaskRequest(image=pictures.image())
    search.options.points_per_side = 2
    async with serving(engine=FakeEngine(model=SMALL_MODEL)) as (service, stub):
        before = waiting(service)
        with (
            blocked(monkeypatch, ids, "embedding_id"),
            blocked(monkeypatch, automask_requests, "options"),
        ):
            calls = started(
                *(stub.Embed(pb.EmbedRequest(image=pictures.image(seed=n))) for n in range(4)),
                *(stub.AutoMask(search) for _ in range(3)),
            )
            await until(lambda: waiting(service) == {"workers": 3, "bulk_workers": 2})
            meanwhile = in_flight(service)
        await calls
        await until(lambda: not in_flight(service))
        after = waiting(service)

    assert meanwhile == {"Embed": 4, "AutoMask": 3}
    assert before == after == {}


async def test_what_waits_for_a_network_is_seen_while_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go = asyncio.Event()
    go.set()
    run = OnnxEngine._run_alone

    async def wait(*args: Any) -> Any:
        await go.wait()
        return await run(*args)

    monkeypatch.setattr(OnnxEngine, "_run_alone", wait)
    async with serving(settings_with(engine={"kind": "onnx"})) as (service, stub):
        embedded = await stub.Embed(pb.EmbedRequest(image=pictures.image()))
        click = pb.PredictRequest(embedding_id=embedded.embedding.id, prompts=[pictures.click()])
        before = waiting(service)
        go.clear()
        calls = started(
            *(stub.Embed(pb.EmbedRequest(image=pictures.image(seed=n))) for n in (1, 2)),
            *(stub.Predict(click) for _ in range(3)),
        )
        await until(lambda: waiting(service) == {"encoder": 1, "decoder": 2})
        running = values(service, "samserve_engine_running", "network")
        go.set()
        await calls
        after = waiting(service)
        runs = values(service, "samserve_engine_runs_total", "network", "outcome")

    assert running == {("encoder",): 1, ("decoder",): 1}
    assert before == after == {}
    # One of each was the warm-up's.
    assert runs == {("encoder", "ok"): 4, ("decoder", "ok"): 4}


async def test_calls_in_flight_and_their_limits_are_told() -> None:
    limits = {"embed": 5, "predict": 6, "automask": 7, "other": 8}
    engine, go = FakeEngine(), asyncio.Event()
    async with serving(settings_with(admission=limits), engine=engine) as (service, stub):
        told = values(service, "samserve_inflight_limit", "grpc_method")
        engine.hold(go)
        wish = pb.EmbedRequest(image=pictures.image())
        calls = started(*(stub.Embed(wish) for _ in range(3)))
        await until(lambda: in_flight(service) == {"Embed": 3})
        failing = started(*(stub.Embed(pb.EmbedRequest(model="nobody")) for _ in range(2)))
        await asyncio.wait([failing])
        await until(lambda: in_flight(service) == {"Embed": 3})
        go.set()
        await calls
        await until(lambda: in_flight(service) == {})

    assert failing.exception()
    assert told == {
        ("Embed",): 5,
        ("Predict",): 6,
        ("AutoMask",): 7,
        ("ListModels",): 8,
        ("DeleteEmbedding",): 8,
    }


def histogram(service: Running, name: str) -> dict[str, tuple[float, float]]:
    """Count and sum by method."""
    counts, sums = (values(service, f"{name}_{part}", "grpc_method") for part in ("count", "sum"))
    return {method: (count, sums.get((method,), 0)) for (method,), count in counts.items()}


async def test_prompts_and_masks_are_counted_by_the_call() -> None:
    async with serving(engine=FakeEngine(model=SMALL_MODEL)) as (service, stub):
        embedded = await stub.Embed(pb.EmbedRequest(image=pictures.image()))
        embedding_id = embedded.embedding.id
        for prompts, multimask in ((1, pb.MULTIMASK_SINGLE), (3, pb.MULTIMASK_ALL)):
            wish = pb.PredictRequest(embedding_id=embedding_id, multimask=multimask)
            wish.prompts.extend([pictures.click()] * prompts)
            await stub.Predict(wish)
        # Nothing was made of these two; what was asked counts.
        wish.prompts[0].points[0].x = 1e6
        await asyncio.wait([started(stub.Predict(wish))])
        search = pb.AutoMaskRequest(embedding_id=embedding_id)
        search.options.points_per_side = 8
        (found,) = await started(stub.AutoMask(search))
        search.options.pred_iou_thresh = 1.0
        await started(stub.AutoMask(search))
        await until(lambda: not in_flight(service))
        prompts = histogram(service, "samserve_prompts_per_call")
        masks = histogram(service, "samserve_masks_per_call")

    assert found[-1].summary.mask_count > 0
    assert prompts == {"Predict": (3, 1 + 3 + 3)}
    # An AutoMask that finds nothing counts, with nothing.
    assert masks == {"Predict": (2, 1 + 9), "AutoMask": (2, found[-1].summary.mask_count)}


async def test_candidates_are_counted_as_automask_s_summary_has_them() -> None:
    async with serving(engine=FakeEngine()) as (service, stub):
        search = pb.AutoMaskRequest(image=pictures.image(96, 128))
        search.options.points_per_side = 4
        search.options.crop_n_layers = 1
        search.options.min_mask_region_area = 4
        search.options.max_masks = 3
        searches = [await started(stub.AutoMask(search)) for _ in range(2)]
        await until(lambda: not in_flight(service))
        counted = values(service, "samserve_automask_candidates_total", "filter", "direction")

    first, second = (answer[-1].summary.filters for (answer,) in searches)
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


async def test_the_loop_s_lag_is_how_late_it_comes_to_what_was_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late_s = 1000.0
    now = [0.0]
    monkeypatch.setattr(server_metrics, "_LAG_EVERY_S", 0.001)
    monkeypatch.setattr(server_metrics, "time", SimpleNamespace(monotonic=lambda: now[0]))
    registry = CollectorRegistry()
    metrics = ServerMetrics(registry)

    def told(part: str, **labels: str) -> float:
        found = registry.get_sample_value(f"samserve_event_loop_lag_seconds_{part}", labels)
        assert found is not None
        return found

    async with metrics.lag_observed():
        await until(lambda: told("count") >= 3)
        punctual = told("bucket", le="60.0"), told("sum")
        now[0] += late_s
        await until(lambda: told("sum") > 0)
        late = told("count") - told("bucket", le="60.0")
        await until(lambda: told("count") >= 6)
    ended = told("count")
    await asyncio.sleep(0.01)

    assert punctual[0] >= 3
    assert punctual[1] == 0
    # A clock that stands still is a millisecond early each time.
    assert (late, told("sum")) == (1, late_s - 0.001)
    assert told("count") == ended


async def test_the_server_observes_its_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_metrics, "_LAG_EVERY_S", 0.001)
    async with serving(engine=FakeEngine(model=SMALL_MODEL)) as (service, _):
        count = "samserve_event_loop_lag_seconds_count"

        await until(lambda: values(service, count).get((), 0) >= 3)
