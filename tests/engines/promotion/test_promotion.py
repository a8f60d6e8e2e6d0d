"""Versions replaced under load: no failed call, no mask of another version, no second encode."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from samserve.models import versions
from samserve.v1 import samserve_pb2 as pb

from harness.program import DIRECT
from tests import sample_images
from tests.engines.promotion.clients import Clients, InService, version_of
from tests.engines.promotion.models import NAME, write_model, write_small
from tests.engines.promotion.services import Services, command, served
from tests.metric_values import total
from tests.support.waiting import until

Write = Callable[..., str]


def encodes(services: Services) -> float:
    """Return the number of runs of the encoder."""
    return sum(
        total(service.metrics.registry, "samserve_engine_runs_total", network="encoder")
        for service, _ in services
    )


def content_of(url: str) -> bytes:
    """Download a file."""
    with DIRECT.open(url, timeout=60) as response:
        content: bytes = response.read()
        return content


@pytest.mark.parametrize("kind", ["onnx", "triton"])
@pytest.mark.parametrize(
    ("write", "times", "clicking_and_segmenting", "gateways"),
    [
        pytest.param(write_small, 1, (5, 1), 1, id="once"),
        pytest.param(
            write_small, 20, (44, 6), 1, id="often", marks=[pytest.mark.slow, pytest.mark.long]
        ),
        pytest.param(write_model, 2, (9, 1), 2, id="two-gateways", marks=pytest.mark.slow),
    ],
)
async def test_calls_end_on_the_version_that_they_began_with(
    kind: str,
    write: Write,
    times: int,
    clicking_and_segmenting: tuple[int, int],
    gateways: int,
    tmp_path: Path,
) -> None:
    repository, new = tmp_path / "models", tmp_path / "new"
    write(repository, 1)
    write(new, 2, name="tuned")
    in_service = InService(frozenset({1}))
    # AutoMask gets a turn only while no click waits; its calls are in flight most of the time.
    slow = write is not write_small
    pause_s = (0.1 if slow else 0.01) * clicking_and_segmenting[0]
    clients = Clients(in_service, pause_s=pause_s, points_per_side=4 if slow else 10)
    codes = []
    async with served(kind, repository, gateways) as services:
        stubs = [stub for _, stub in services]
        async with clients.running(stubs, *clicking_and_segmenting):
            await clients.progress()
            encoded = encodes(services)
            for _ in range(times):
                for version, arguments in (
                    (2, ("promote", NAME, str(new))),
                    (1, ("rollback", NAME)),
                ):
                    in_service.set(1, 2)
                    codes.append(await command(services, repository, *arguments))
                    in_service.set(version)
                    await clients.progress()
            encoded = encodes(services) - encoded
    print(clients.counts)

    assert clients.wrong == []
    assert codes == [0] * (2 * times)
    assert {version for _, version in clients.counts} == {1, 2}
    assert encoded == 0


async def test_command_that_is_repeated_switches_gateways_that_it_did_not_reach(
    tmp_path: Path,
) -> None:
    repository, new = tmp_path / "models", tmp_path / "new"
    write_small(repository, 1)
    digest = write_small(new, 2, name="tuned")
    arguments = ("promote", NAME, str(new))
    async with served("onnx", repository, 2) as services:
        codes = [await command(services[:1], repository, *arguments)]
        before = [service.engine.models[NAME].digest for service, _ in services]
        codes += [await command(services, repository, *arguments) for _ in range(2)]
        after = [service.engine.models[NAME].digest for service, _ in services]

    assert codes == [0, 0, 1]
    assert before[0] == digest != before[1]
    assert after == [digest, digest]
    assert not list(repository.glob("*/3"))


async def test_new_decoder_can_be_downloaded_beside_the_old_one(tmp_path: Path) -> None:
    repository, new = tmp_path / "models", tmp_path / "new"
    write_model(repository, 1)
    write_model(new, 2, name="tuned")
    http = {"enabled": True, "port": 0}
    async with served("onnx", repository, http=http) as services:
        ((service, stub),) = services

        async def download() -> tuple[str, bytes]:
            (model,) = (await stub.ListModels(pb.ListModelsRequest())).models
            url = f"{service.http_address}/decoders/{model.decoder_sha256}"
            return url, await asyncio.to_thread(content_of, url)

        old, first = await download()
        await command(services, repository, "promote", NAME, str(new))
        _, content = await download()
        kept = await asyncio.to_thread(content_of, old)

    assert content == (new / "tuned_decoder" / "1" / "model.onnx").read_bytes()
    assert kept == first != content


@pytest.mark.slow
async def test_triton_and_gateway_that_start_serve_the_version_committed_last(
    tmp_path: Path,
) -> None:
    repository, new = tmp_path / "models", tmp_path / "new"
    write_small(repository, 1)
    write_small(new, 2, name="tuned")
    request = pb.PredictRequest(image=sample_images.image(), prompts=[sample_images.point_prompt()])
    # A command that ended before the commit has left this.
    installed = versions.install(repository, NAME, new)
    seen = []
    for _ in range(2):
        async with served("triton", repository) as services:
            ((_, stub),) = services
            masks = (await stub.Predict(request)).results[0].masks
            seen.append(version_of(mask.predicted_iou for mask in masks))
        versions.commit(repository, installed)

    assert seen == [1, 2]


@pytest.mark.slow
async def test_gateway_of_the_same_triton_that_was_not_named_switches_by_itself(
    tmp_path: Path,
) -> None:
    repository, new = tmp_path / "models", tmp_path / "new"
    write_model(repository, 1)
    digest = write_model(new, 2, name="tuned")
    seen: list[int] = []
    failures: set[str] = set()
    over = asyncio.Event()
    async with served("triton", repository, 2) as services:
        (_, (other, stub)) = services
        image = sample_images.image()
        embedding = (await stub.Embed(pb.EmbedRequest(image=image))).embedding.id
        options = pb.AutoMaskOptions(
            points_per_side=3, points_per_batch=1, pred_iou_thresh=0, stability_score_thresh=0
        )

        async def segment() -> None:
            while not over.is_set():
                stream = stub.AutoMask(pb.AutoMaskRequest(embedding_id=embedding, options=options))
                try:
                    records = [each async for part in stream for each in part.masks.records]
                    seen.append(version_of(each.mask.predicted_iou for each in records))
                except grpc.aio.AioRpcError as error:
                    failures.add(error.code().name)

        segmenting = asyncio.create_task(segment())
        await until(lambda: seen)
        code = await command(services[:1], repository, "promote", NAME, str(new))
        await until(lambda: other.engine.models[NAME].digest == digest)
        count = len(seen)
        await until(lambda: len(seen) >= count + 3)
        over.set()
        await segmenting

    assert code == 0
    assert failures <= {"UNAVAILABLE"}
    assert (seen[0], seen[-1]) == (1, 2)
    assert seen == sorted(seen)
