"""Discovery of the models that Triton serves, also when they change while the gateway runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from samserve.errors import EngineUnavailable
from samserve.v1 import samserve_pb2 as pb
from structlog.testing import capture_logs

from harness.triton.server import TritonServer
from tests import sample_images
from tests.engines.drawing import write_drawing_pair
from tests.engines.triton.services import (
    gateway,
    is_healthy,
    opened,
)
from tests.rpc.errors import failure_of
from tests.support.waiting import until


def write_models(repository: Path, *names: str, weights: str = "") -> None:
    """Write drawing pairs with different digests, and one instance of each network."""
    for name in names:
        write_drawing_pair(repository, name, weights=f"{name} {weights}")
        edit(repository / f"{name}_decoder", "count: 2", "count: 1")


def edit(model: Path, pattern: str, replacement: str) -> None:
    config = model / "config.pbtxt"
    text = config.read_text()
    changed = re.sub(pattern, replacement, text)
    assert changed != text
    config.write_text(changed)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Two models, and three that cannot be served.

    The decoder of ``unfit`` belongs to another encoder, the encoder of ``odd`` has no image size,
    and the decoder of ``aged`` does not report the digest of its weights.
    """
    folder = tmp_path_factory.mktemp("several")
    models = folder / "models"
    write_models(models, "fake", "other", "unfit", "odd", "aged")
    edit(models / "unfit_decoder", r'(encoder_digest" value \{ string_value: ")', r"\g<1>0")
    edit(models / "odd_encoder", r".*samserve\.image_size.*\n", "")
    edit(models / "aged_decoder", r",\n.*samserve_digest.*", "")
    with TritonServer(models, log=folder / "log") as server:
        yield server


async def test_several_models_are_served_and_embed_selects_one(several: TritonServer) -> None:
    image = sample_images.image(200, 300)
    async with gateway(several.grpc_address, default_model="other") as (_, stub):
        listed = (await stub.ListModels(pb.ListModelsRequest())).models
        embedded = {
            name: (await stub.Embed(pb.EmbedRequest(image=image, model=name))).embedding
            for name in ("", "fake", "other")
        }
        responses = [
            await stub.Predict(
                pb.PredictRequest(embedding_id=each.id, prompts=[sample_images.point_prompt()])
            )
            for each in embedded.values()
        ]

    assert [(model.name, model.default) for model in listed] == [("other", True), ("fake", False)]
    assert len({model.digest for model in listed}) == 2
    assert [each.model for each in embedded.values()] == ["other", "fake", "other"]
    assert embedded["fake"].id != embedded["other"].id == embedded[""].id
    assert [response.embedding.model for response in responses] == ["other", "fake", "other"]


async def test_inconsistent_models_are_skipped_and_logged(several: TritonServer) -> None:
    with capture_logs() as logs:
        async with opened(several.grpc_address) as (engine, _):
            assert await engine.ready()
            names = list(engine.models)
    with pytest.raises(EngineUnavailable, match="default model 'unfit'"):
        async with opened(several.grpc_address, default_model="unfit", startup_timeout_s=0.0):
            pass

    assert names == ["fake", "other"]
    reasons = [entry["reason"] for entry in logs if entry["event"] == "model skipped"]
    assert any("other weights" in reason for reason in reasons)
    # Once each, and not at every check.
    assert len(reasons) == len(set(reasons)) == 3


async def test_model_without_digest_output_is_rejected_with_the_upgrade_command(
    several: TritonServer,
) -> None:
    with pytest.raises(EngineUnavailable) as rejected:
        async with opened(several.grpc_address, default_model="aged", startup_timeout_s=0.0):
            pass

    assert "default model 'aged'" in str(rejected.value)
    assert "model 'aged' does not report the digest" in str(rejected.value)
    assert "samserve models upgrade REPOSITORY" in str(rejected.value)


async def test_old_ids_are_not_found_after_a_restart_with_other_weights(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    write_models(models, "fake", "other")
    with TritonServer(models, log=tmp_path / "log") as server:
        async with gateway(server.grpc_address) as (service, stub):
            image = sample_images.image(200, 300)
            old = {
                name: (await stub.Embed(pb.EmbedRequest(image=image, model=name))).embedding.id
                for name in ("fake", "other")
            }
            server.kill()
            await until(lambda: not is_healthy(service))
            # The weights of one model change, the other stays, a third one is added.
            write_models(models, "fake", weights="new")
            write_models(models, "third")
            server.start()
            await until(lambda: is_healthy(service))
            prompts = [sample_images.point_prompt()]
            missing = await failure_of(
                stub.Predict(pb.PredictRequest(embedding_id=old["fake"], prompts=prompts))
            )
            kept = await stub.Predict(pb.PredictRequest(embedding_id=old["other"], prompts=prompts))
            by_image = pb.PredictRequest(image=image, model="fake", prompts=prompts)
            encoded_again = await stub.Predict(by_image)
            listed = (await stub.ListModels(pb.ListModelsRequest())).models

    assert missing.reason == "EMBEDDING_NOT_FOUND"
    assert kept.embedding.cached
    assert not encoded_again.embedding.cached
    assert [model.name for model in listed] == ["fake", "other", "third"]


async def test_models_without_samserve_parameters_are_not_served(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_models(models, "foreign")
    edit(models / "foreign_decoder", r".*samserve\.role.*\n", "")
    only = ["--model-control-mode=explicit", "--load-model=foreign_decoder"]
    with (
        TritonServer(models, log=tmp_path / "log", extra_args=only) as server,
        pytest.raises(EngineUnavailable, match="serves no samserve model"),
    ):
        async with opened(server.grpc_address, startup_timeout_s=0.0):
            pass


async def test_startup_fails_after_its_timeout_if_triton_is_unreachable() -> None:
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        async with opened("127.0.0.1:1", startup_timeout_s=0.5):
            pass


async def test_monitoring_continues_after_an_unexpected_error(
    several: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(several.grpc_address, health_interval_s=0.05) as (engine, _):
        monitor, failures = engine._monitor, []
        refresh = monitor._rotation.refresh

        async def fail_once() -> None:
            if not failures:
                failures.append(monitor.healthy)
                raise LookupError("unexpected")
            await refresh()

        with capture_logs() as lines:
            monkeypatch.setattr(monitor._rotation, "refresh", fail_once)
            await until(lambda: [line for line in lines if "monitoring" in line["event"]])
            await monitor.refresh()
            healthy = await engine.ready()

    assert failures == [True]
    assert healthy
