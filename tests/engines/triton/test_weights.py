"""Weights replaced during calls: every result belongs to the weights of its embedding id."""

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
from tests import sample_images
from tests.engines.triton import services
from tests.engines.triton.services import is_healthy, wait_for_checks
from tests.engines.triton.traffic import NAME, Traffic, Weights
from tests.engines.weights import Versions, versions_of, write_version
from tests.export.config_check import age
from tests.metric_values import total
from tests.rpc.errors import failure_of
from tests.support.waiting import until
from tests.triton import queries

EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")
POLL = ("--model-control-mode=poll", "--repository-poll-secs=1")

Change = Callable[[TritonServer, Weights, int], None]


def load(server: TritonServer, *models: str) -> None:
    """Make a running Triton load models from its repository."""
    with queries.client(server) as client:
        for model in models:
            client.load_model(model)


def by_load(server: TritonServer, weights: Weights, version: int) -> None:
    """Load the models one after the other, as a client of Triton's model control does."""
    weights.write(version)
    load(server, f"{NAME}_encoder", f"{NAME}_decoder")


def by_poll(_server: TritonServer, weights: Weights, version: int) -> None:
    """Let Triton detect them by polling."""
    weights.write(version)


def by_restart(server: TritonServer, weights: Weights, version: int) -> None:
    """Restart Triton with the new version."""
    server.kill()
    weights.write(version)
    server.start()


async def replace_under_traffic(
    change: Change, args: tuple[str, ...], times: int, folder: Path
) -> Traffic:
    """Replace the weights *times* times during continuous calls."""
    weights = Weights(folder / "models")
    weights.write(1)
    with TritonServer(weights.repository, log=folder / "log", extra_args=args) as server:
        gateway = services.gateway(
            server.grpc_address, shared_memory="required", capacity_bytes=1 << 30
        )
        async with gateway as service:
            traffic = Traffic(service, weights)
            async with traffic.running():
                for number in range(times):
                    await traffic.progress()
                    # Alternate, so that embeddings cached for earlier weights are found again.
                    version = 2 - number % 2
                    await asyncio.to_thread(partial(change, server, weights, version))
                    digest = weights.infos[version].digest
                    await until(lambda d=digest: service[0].engine.models[NAME].digest == d)  # type: ignore[misc]  # mypy cannot see the type of a default
                await traffic.progress()
            await traffic.check_cache()
            print(traffic)
    return traffic


CHANGES = {
    "load": (by_load, EXPLICIT, 2),
    "poll": (by_poll, POLL, 1),
    "restart": (by_restart, (), 1),
}


@pytest.mark.parametrize("method", CHANGES)
@pytest.mark.parametrize(
    "least",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.long)],
    ids=["few", "many"],
)
async def test_every_result_belongs_to_the_weights_of_its_id(
    method: str, least: int, tmp_path: Path
) -> None:
    change, args, times = CHANGES[method]
    traffic = await replace_under_traffic(change, args, max(times, least), tmp_path)

    assert traffic.mismatches == []
    assert traffic.cached > 0


@asynccontextmanager
async def served(
    models: Path, **settings: Any
) -> AsyncIterator[tuple[TritonServer, Running, SegmentationServiceStub]]:
    """Run a Triton that loads models on request only, and a gateway connected to it."""
    with TritonServer(models, log=models.parent / "log", extra_args=EXPLICIT) as server:
        async with services.gateway(server.grpc_address, **settings) as (service, stub):
            yield server, service, stub


async def test_model_stays_listed_but_unavailable_while_only_its_encoder_is_replaced(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    for name in ("fake", "other"):
        write_version(models, name, 1)
    async with served(models, shared_memory="required") as (server, service, stub):
        image, prompts = sample_images.image(), [sample_images.point_prompt()]
        old = (await stub.Embed(pb.EmbedRequest(image=image, model="fake"))).embedding.id
        write_version(models, "fake", 2)
        await asyncio.to_thread(load, server, "fake_encoder")
        await wait_for_checks(service.engine)  # type: ignore[arg-type]  # it is a TritonEngine
        listed = [m.name for m in (await stub.ListModels(pb.ListModelsRequest())).models]
        fresh = pb.EmbedRequest(image=sample_images.image(seed=1), model="fake")
        unavailable = await failure_of(stub.Embed(fresh))
        by_id = pb.PredictRequest(embedding_id=old, prompts=prompts)
        kept = await stub.Predict(by_id)
        await stub.Embed(pb.EmbedRequest(image=image, model="other"))
        healthy = is_healthy(service)
        registry = service.metrics.registry
        counted = total(registry, "samserve_triton_errors_total", kind="weights_mismatch")
        await asyncio.to_thread(load, server, "fake_decoder")
        missing = await failure_of(stub.Predict(by_id))
        await until(lambda: "version 2" in service.engine.models["fake"].description)
        assert not (await stub.Embed(fresh)).embedding.cached

    assert listed == ["fake", "other"]
    assert (unavailable.reason, unavailable.retry_after_s) == ("ENGINE_UNAVAILABLE", 1.0)
    assert "weights of model 'fake'" in unavailable.text
    assert kept.embedding.cached
    assert healthy
    assert counted == 1
    assert missing.reason == "EMBEDDING_NOT_FOUND"


async def test_replacing_only_the_decoder_fails_no_call_and_keeps_all_embeddings(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    old = write_version(models, "fake", 1)
    async with served(models) as (server, service, stub):
        image = sample_images.image()
        embedding = (await stub.Embed(pb.EmbedRequest(image=image))).embedding
        seen: Counter[Versions] = Counter()
        over = asyncio.Event()

        async def predict() -> None:
            request = pb.PredictRequest(
                embedding_id=embedding.id,
                prompts=[sample_images.point_prompt()],
                multimask=pb.MULTIMASK_ALL,
            )
            while not over.is_set():
                masks = (await stub.Predict(request)).results[0].masks
                seen[versions_of({m.token_index: m.predicted_iou for m in masks})] += 1

        async with asyncio.TaskGroup() as callers:
            for _ in range(4):
                callers.create_task(predict())
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
    # The first one is the warm-up.
    assert encodes == 2


async def test_models_of_the_previous_export_can_be_upgraded_while_the_gateway_runs(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    write_version(models, "fake", 1)
    age(models, "fake", stamped=True)
    async with served(models) as (server, service, stub):
        image, prompts = sample_images.image(), [sample_images.point_prompt()]
        old = (await stub.Embed(pb.EmbedRequest(image=image))).embedding.id
        before = service.engine.models["fake"]
        await stub.Predict(pb.PredictRequest(embedding_id=old, prompts=prompts))
        (upgraded,) = upgrade(models)
        await asyncio.to_thread(load, server, "fake_encoder", "fake_decoder")
        await until(lambda: service.engine.models["fake"] != before)
        after = service.engine.models["fake"]
        by_id = pb.PredictRequest(embedding_id=old, prompts=prompts)
        missing = await failure_of(stub.Predict(by_id))
        fresh = await stub.Predict(pb.PredictRequest(image=image, prompts=prompts))

    assert before.encoder_digest == before.digest == after.digest == upgraded.digest
    assert after.encoder_digest != before.encoder_digest
    assert missing.reason == "EMBEDDING_NOT_FOUND"
    assert not fresh.embedding.cached


@pytest.mark.parametrize("shared_memory", ["required", "off"])
async def test_replaced_decoder_may_have_another_mask_size(
    shared_memory: str, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    write_version(models, "fake", 1)
    # Only a failed call triggers a check of Triton.
    gateway = served(models, shared_memory=shared_memory, health_interval_s=600)
    async with gateway as (server, _, stub):
        embedding = (await stub.Embed(pb.EmbedRequest(image=sample_images.image()))).embedding
        write_version(models, "fake", 1, decoder=2, mask_size=128)
        await asyncio.to_thread(load, server, "fake_decoder")
        request = pb.PredictRequest(
            embedding_id=embedding.id,
            prompts=[sample_images.point_prompt()],
            include_low_res_logits=True,
        )
        unavailable = await failure_of(stub.Predict(request))
        (mask, *_) = (await stub.Predict(request)).results[0].masks

    assert (unavailable.reason, unavailable.retry_after_s) == ("ENGINE_UNAVAILABLE", 1.0)
    assert len(mask.low_res_logits) == 128 * 128 * 4


async def test_decoder_of_another_encoder_is_never_used(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_version(models, "fake", 1)
    async with served(models) as (server, _, stub):
        embedding = (await stub.Embed(pb.EmbedRequest(image=sample_images.image()))).embedding
        write_version(models, "fake", 2)
        await asyncio.to_thread(load, server, "fake_decoder")
        by_id = pb.PredictRequest(embedding_id=embedding.id, prompts=[sample_images.point_prompt()])
        # The first call detects it, the second one follows a check of Triton.
        failures = [await failure_of(stub.Predict(by_id)) for _ in range(2)]
        write_version(models, "fake", 1)
        await asyncio.to_thread(load, server, "fake_decoder")
        response = await stub.Predict(by_id)

    assert [(each.reason, each.retry_after_s) for each in failures] == [
        ("ENGINE_UNAVAILABLE", 1.0)
    ] * 2
    assert "weights of model 'fake'" in failures[0].text
    assert response.embedding.cached


@pytest.mark.slow
@pytest.mark.parametrize("shared_memory", ["required", "off"])
async def test_weights_with_other_tensor_types_are_handled_as_replaced_weights(
    shared_memory: str, tmp_path: Path
) -> None:
    models, prompts = tmp_path / "models", [sample_images.point_prompt()]
    for name in ("fake", "other"):
        write_version(models, name, 1)
    # Only a failed call triggers a check of Triton.
    gateway = served(models, shared_memory=shared_memory, health_interval_s=600)
    async with gateway as (server, service, stub):

        async def embed(seed: int) -> str:
            request = pb.EmbedRequest(image=sample_images.image(seed=seed), model="fake")
            return (await stub.Embed(request)).embedding.id

        async def failure(embedding_id: str) -> str:
            request = pb.PredictRequest(embedding_id=embedding_id, prompts=prompts)
            return (await failure_of(stub.Predict(request))).reason

        old = await embed(0)
        write_version(models, "fake", 2, precision="float")
        await asyncio.to_thread(load, server, "fake_encoder", "fake_decoder")
        new = await embed(1)
        with_old = await failure(old)
        await stub.Predict(pb.PredictRequest(embedding_id=new, prompts=prompts))

        age(models, "fake")
        await asyncio.to_thread(load, server, "fake_encoder", "fake_decoder")
        with_new = await failure(new)
        listed = list(service.engine.models)

    assert (with_old, with_new) == ("EMBEDDING_NOT_FOUND", "EMBEDDING_NOT_FOUND")
    assert listed == ["other"]
