"""Weights that change under one name while calls run: an answer is of the weights that it names."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from samserve.app import Running
from samserve.export.upgrade import upgrade
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from harness.triton.server import TritonServer
from tests import pictures
from tests.engines.triton import opening
from tests.engines.triton.drill import NAME, Drill, Weights
from tests.engines.triton.opening import is_healthy, looked_again
from tests.engines.weights import Versions, versions_of, write_version
from tests.export.config_check import age
from tests.rpc.errors import failure_of
from tests.samples import total
from tests.support.waiting import until
from tests.triton import asking

EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")
POLL = ("--model-control-mode=poll", "--repository-poll-secs=1")

Change = Callable[[TritonServer, Weights, int], None]


def load(server: TritonServer, *models: str) -> None:
    """Have a running Triton load what is in its repository."""
    with asking.client(server) as client:
        for model in models:
            client.load_model(model)


def by_load(server: TritonServer, weights: Weights, version: int) -> None:
    """Load them one after the other, as a client of Triton's model control does."""
    weights.write(version)
    load(server, f"{NAME}_encoder", f"{NAME}_decoder")


def by_poll(_server: TritonServer, weights: Weights, version: int) -> None:
    """Let Triton find them by itself."""
    weights.write(version)


def by_restart(server: TritonServer, weights: Weights, version: int) -> None:
    """Restart Triton with them."""
    server.kill()
    weights.write(version)
    server.start()


async def run_drill(change: Change, args: tuple[str, ...], times: int, folder: Path) -> Drill:
    """Replace the weights so many times under calls that never stop."""
    weights = Weights(folder / "models")
    weights.write(1)
    with TritonServer(weights.repository, log=folder / "log", extra_args=args) as server:
        gateway = opening.gateway(
            server.grpc_address, shared_memory="required", capacity_bytes=1 << 30
        )
        async with gateway as service:
            drill = Drill(service, weights)
            async with drill.running():
                for number in range(times):
                    await drill.progress()
                    # Twice the same: then what was stored under the first ones is found again.
                    version = 2 - number % 2
                    await asyncio.to_thread(partial(change, server, weights, version))
                    digest = weights.infos[version].digest
                    await until(lambda d=digest: service[0].engine.models[NAME].digest == d)  # type: ignore[misc]  # mypy cannot see the type of a default
                await drill.progress()
            await drill.inspect()
            print(drill)
    return drill


CHANGES = {
    "load": (by_load, EXPLICIT, 2),
    "poll": (by_poll, POLL, 1),
    "restart": (by_restart, (), 1),
}


@pytest.mark.parametrize("way", CHANGES)
@pytest.mark.parametrize(
    "least",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.long)],
    ids=["few", "many"],
)
async def test_no_answer_is_of_other_weights_than_its_id(
    way: str, least: int, tmp_path: Path
) -> None:
    change, args, times = CHANGES[way]
    drill = await run_drill(change, args, max(times, least), tmp_path)

    assert drill.wrong == []
    assert drill.stored > 0


@asynccontextmanager
async def served(
    models: Path, **settings: Any
) -> AsyncIterator[tuple[TritonServer, Running, SegmentationServiceStub]]:
    """Run a Triton that loads models when it is told to, and a gateway before it."""
    with TritonServer(models, log=models.parent / "log", extra_args=EXPLICIT) as server:
        async with opening.gateway(server.grpc_address, **settings) as (service, stub):
            yield server, service, stub


async def test_while_only_the_encoder_is_new_a_model_is_there_and_says_so(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name in ("fake", "other"):
        write_version(models, name, 1)
    async with served(models, shared_memory="required") as (server, service, stub):
        image, click = pictures.image(), [pictures.click()]
        old = (await stub.Embed(pb.EmbedRequest(image=image, model="fake"))).embedding.id
        write_version(models, "fake", 2)
        await asyncio.to_thread(load, server, "fake_encoder")
        await looked_again(service.engine)  # type: ignore[arg-type]  # it is a TritonEngine
        listed = [m.name for m in (await stub.ListModels(pb.ListModelsRequest())).models]
        fresh = pb.EmbedRequest(image=pictures.image(seed=1), model="fake")
        refused = await failure_of(stub.Embed(fresh))
        kept = await stub.Predict(pb.PredictRequest(embedding_id=old, prompts=click))
        await stub.Embed(pb.EmbedRequest(image=image, model="other"))
        healthy = is_healthy(service)
        registry = service.metrics.registry
        counted = total(registry, "samserve_triton_errors_total", kind="other_weights")
        await asyncio.to_thread(load, server, "fake_decoder")
        gone = await failure_of(stub.Predict(pb.PredictRequest(embedding_id=old, prompts=click)))
        await until(lambda: "version 2" in service.engine.models["fake"].description)
        assert not (await stub.Embed(fresh)).embedding.cached

    assert listed == ["fake", "other"]
    assert (refused.reason, refused.retry_after_s) == ("ENGINE_UNAVAILABLE", 1.0)
    assert "weights of model 'fake'" in refused.text
    assert kept.embedding.cached
    assert healthy
    assert counted == 1
    assert gone.reason == "EMBEDDING_NOT_FOUND"


async def test_a_decoder_that_is_replaced_alone_fails_no_call_and_loses_no_embedding(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    old = write_version(models, "fake", 1)
    async with served(models) as (server, service, stub):
        image = pictures.image()
        embedding = (await stub.Embed(pb.EmbedRequest(image=image))).embedding
        seen: Counter[Versions] = Counter()
        over = asyncio.Event()

        async def click() -> None:
            request = pb.PredictRequest(
                embedding_id=embedding.id,
                prompts=[pictures.click()],
                multimask=pb.MULTIMASK_ALL,
            )
            while not over.is_set():
                masks = (await stub.Predict(request)).results[0].masks
                seen[versions_of({m.token_index: m.predicted_iou for m in masks})] += 1

        async with asyncio.TaskGroup() as callers:
            for _ in range(4):
                callers.create_task(click())
            await until(lambda: seen[Versions(1, 1)] > 10)
            new = write_version(models, "fake", 1, decoder=2)
            await asyncio.to_thread(load, server, "fake_decoder")
            await until(lambda: seen[Versions(1, 2)] > 10)
            await until(lambda: service.engine.models["fake"] == new)
            over.set()
        again = (await stub.Embed(pb.EmbedRequest(image=image))).embedding
        (listed,) = (await stub.ListModels(pb.ListModelsRequest())).models
        registry = service.metrics.registry
        encodes = total(registry, "samserve_engine_runs_total", network="encoder")

    assert set(seen) == {Versions(1, 1), Versions(1, 2)}
    assert (again.id, again.cached) == (embedding.id, True)
    assert listed.digest == new.digest != old.digest
    assert listed.encoder_digest == new.encoder_digest == old.encoder_digest
    assert listed.description == "version 2"
    # The first one is that of the start.
    assert encodes == 2


async def test_models_of_the_previous_export_are_upgraded_under_a_running_gateway(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    write_version(models, "fake", 1)
    age(models, "fake", stamped=True)
    async with served(models) as (server, service, stub):
        image, click = pictures.image(), [pictures.click()]
        old = (await stub.Embed(pb.EmbedRequest(image=image))).embedding.id
        before = service.engine.models["fake"]
        await stub.Predict(pb.PredictRequest(embedding_id=old, prompts=click))
        (upgraded,) = upgrade(models)
        await asyncio.to_thread(load, server, "fake_encoder", "fake_decoder")
        await until(lambda: service.engine.models["fake"] != before)
        after = service.engine.models["fake"]
        by_id = pb.PredictRequest(embedding_id=old, prompts=click)
        gone = await failure_of(stub.Predict(by_id))
        fresh = await stub.Predict(pb.PredictRequest(image=image, prompts=click))

    assert before.encoder_digest == before.digest == after.digest == upgraded.digest
    assert after.encoder_digest != before.encoder_digest
    assert gone.reason == "EMBEDDING_NOT_FOUND"
    assert not fresh.embedding.cached


@pytest.mark.parametrize("shared_memory", ["required", "off"])
async def test_a_decoder_alone_may_have_masks_of_another_size(
    shared_memory: str, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    write_version(models, "fake", 1)
    # Only what a call meets has the gateway look.
    gateway = served(models, shared_memory=shared_memory, health_interval_s=600)
    async with gateway as (server, _, stub):
        embedding = (await stub.Embed(pb.EmbedRequest(image=pictures.image()))).embedding
        write_version(models, "fake", 1, decoder=2, mask_size=128)
        await asyncio.to_thread(load, server, "fake_decoder")
        request = pb.PredictRequest(
            embedding_id=embedding.id, prompts=[pictures.click()], include_low_res_logits=True
        )
        refused = await failure_of(stub.Predict(request))
        (mask, *_) = (await stub.Predict(request)).results[0].masks

    assert (refused.reason, refused.retry_after_s) == ("ENGINE_UNAVAILABLE", 1.0)
    assert len(mask.low_res_logits) == 128 * 128 * 4


async def test_a_decoder_of_another_encoder_answers_no_call(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_version(models, "fake", 1)
    async with served(models) as (server, _, stub):
        embedding = (await stub.Embed(pb.EmbedRequest(image=pictures.image()))).embedding
        write_version(models, "fake", 2)
        await asyncio.to_thread(load, server, "fake_decoder")
        by_id = pb.PredictRequest(embedding_id=embedding.id, prompts=[pictures.click()])
        # The first one finds it out, the second one is after a look.
        refused = [await failure_of(stub.Predict(by_id)) for _ in range(2)]
        write_version(models, "fake", 1)
        await asyncio.to_thread(load, server, "fake_decoder")
        answered = await stub.Predict(by_id)

    assert [(each.reason, each.retry_after_s) for each in refused] == [
        ("ENGINE_UNAVAILABLE", 1.0)
    ] * 2
    assert "weights of model 'fake'" in refused[0].text
    assert answered.embedding.cached


@pytest.mark.slow
@pytest.mark.parametrize("shared_memory", ["required", "off"])
async def test_weights_with_other_tensors_are_no_failure_of_the_model(
    shared_memory: str, tmp_path: Path
) -> None:
    models, click = tmp_path / "models", [pictures.click()]
    for name in ("fake", "other"):
        write_version(models, name, 1)
    # Only what a call meets has the gateway look.
    gateway = served(models, shared_memory=shared_memory, health_interval_s=600)
    async with gateway as (server, service, stub):

        async def embed(seed: int) -> str:
            request = pb.EmbedRequest(image=pictures.image(seed=seed), model="fake")
            return (await stub.Embed(request)).embedding.id

        async def failure(embedding_id: str) -> str:
            request = pb.PredictRequest(embedding_id=embedding_id, prompts=click)
            return (await failure_of(stub.Predict(request))).reason

        old = await embed(0)
        write_version(models, "fake", 2, precision="float")
        await asyncio.to_thread(load, server, "fake_encoder", "fake_decoder")
        new = await embed(1)
        clicked_on_old = await failure(old)
        await stub.Predict(pb.PredictRequest(embedding_id=new, prompts=click))

        age(models, "fake")
        await asyncio.to_thread(load, server, "fake_encoder", "fake_decoder")
        clicked_on_new = await failure(new)
        listed = list(service.engine.models)

    assert (clicked_on_old, clicked_on_new) == ("EMBEDDING_NOT_FOUND", "EMBEDDING_NOT_FOUND")
    assert listed == ["other"]
