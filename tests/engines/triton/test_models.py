"""Which models a Triton serves, also when that changes behind the gateway's back."""

from __future__ import annotations

import shutil
from pathlib import Path

import grpc
import pytest
from samserve.app import Running, running
from samserve.context import RequestContext
from samserve.errors import EngineUnavailable
from samserve.settings import load
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub
from structlog.testing import capture_logs

from harness.triton.server import TritonServer
from tests import chosen, pictures
from tests.conftest import FREE_PORTS, UNLIMITED
from tests.engines.drawing import write_drawing_pair
from tests.engines.triton.opening import clicks, eventually, opened, picture, reserved
from tests.rpc.errors import failure_of
from tests.triton import asking


def settings(server: TritonServer, default_model: str = "") -> dict[str, dict[str, object]]:
    return {
        "server": FREE_PORTS,
        "engine": {"kind": "triton", "default_model": default_model},
        "triton": {"url": server.grpc_address},
        "store": {"capacity_bytes": 64 << 20},
    }


def write_models(repository: Path) -> None:
    """The pair that draws as `fake`, and as `other` with other bytes."""
    write_drawing_pair(repository, "fake")
    write_drawing_pair(repository, "other", steps=1)


async def test_models_are_served_side_by_side_and_embed_selects_one(tmp_path: Path) -> None:
    write_models(tmp_path / "models")
    image = pictures.image(200, 300)
    with TritonServer(tmp_path / "models", log=tmp_path / "log") as server:
        async with (
            running(load(settings(server, "other"))) as service,
            grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
        ):
            stub = SegmentationServiceStub(channel)
            listed = (await stub.ListModels(pb.ListModelsRequest())).models
            embedded = {
                name: (await stub.Embed(pb.EmbedRequest(image=image, model=name))).embedding
                for name in ("", "fake", "other")
            }
            answers = [
                await stub.Predict(
                    pb.PredictRequest(embedding_id=each.id, prompts=[pictures.click()])
                )
                for each in embedded.values()
            ]

    assert [(model.name, model.default) for model in listed] == [("other", True), ("fake", False)]
    assert len({model.digest for model in listed}) == 2
    assert [each.model for each in embedded.values()] == ["other", "fake", "other"]
    assert embedded["fake"].id != embedded["other"].id == embedded[""].id
    assert [answer.embedding.model for answer in answers] == ["other", "fake", "other"]


async def test_a_model_of_other_weights_after_a_restart_makes_old_ids_unknown(
    tmp_path: Path,
) -> None:
    write_models(tmp_path / "models")
    with TritonServer(tmp_path / "models", log=tmp_path / "log") as server:
        async with (
            running(load(settings(server))) as service,
            grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
        ):
            stub = SegmentationServiceStub(channel)
            image = pictures.image(200, 300)
            old = {
                name: (await stub.Embed(pb.EmbedRequest(image=image, model=name))).embedding.id
                for name in ("fake", "other")
            }
            server.kill()
            await eventually(lambda: not is_healthy(service))
            # The weights of one change, the other stays, a third one comes.
            write_drawing_pair(tmp_path / "models", "fake", steps=2)
            write_drawing_pair(tmp_path / "models", "third", steps=3)
            server.start()
            await eventually(lambda: is_healthy(service))
            click = [pictures.click()]
            gone = await failure_of(
                stub.Predict(pb.PredictRequest(embedding_id=old["fake"], prompts=click))
            )
            kept = await stub.Predict(pb.PredictRequest(embedding_id=old["other"], prompts=click))
            healed = await stub.Predict(pb.PredictRequest(image=image, model="fake", prompts=click))
            listed = (await stub.ListModels(pb.ListModelsRequest())).models

    assert gone.reason == "EMBEDDING_NOT_FOUND"
    assert kept.embedding.cached
    assert not healed.embedding.cached
    assert [model.name for model in listed] == ["fake", "other", "third"]


def is_healthy(service: Running) -> bool:
    return bool(service.engine._link.healthy)  # type: ignore[attr-defined]  # it is a TritonEngine


async def test_a_pair_that_does_not_fit_is_left_out_and_said_so(tmp_path: Path) -> None:
    write_models(tmp_path / "models")
    config = tmp_path / "models" / "other_decoder" / "config.pbtxt"
    text = config.read_text()
    (digest,) = [line for line in text.splitlines() if "samserve.digest" in line]
    config.write_text(text.replace(digest, digest.replace('string_value: "', 'string_value: "0')))
    with TritonServer(tmp_path / "models", log=tmp_path / "log") as server:
        with capture_logs() as logs:
            async with opened(server.grpc_address) as (engine, _):
                names = list(engine.models)
        with pytest.raises(EngineUnavailable, match="default model 'other'"):
            async with opened(server.grpc_address, default_model="other", startup_s=0.0):
                pass

    assert names == ["fake"]
    warnings = [entry for entry in logs if entry["event"] == "model left out"]
    assert "other weights" in warnings[0]["reason"]


async def test_models_of_somebody_else_are_not_served(tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(chosen.drawing_repository(), models)
    for config in models.glob("*/config.pbtxt"):
        lines = config.read_text().splitlines()
        config.write_text("\n".join(line for line in lines if "samserve.role" not in line))
    with (
        TritonServer(models, log=tmp_path / "log") as server,
        pytest.raises(EngineUnavailable, match="no model that samserve knows"),
    ):
        async with opened(server.grpc_address, startup_s=0.0):
            pass


async def test_a_triton_that_is_not_there_is_given_up_in_time() -> None:
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        async with opened("127.0.0.1:1", startup_s=0.5):
            pass


async def test_weights_that_are_replaced_under_a_running_triton_are_noticed(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    write_drawing_pair(models, "fake")
    control = ["--model-control-mode=explicit", "--load-model=*"]
    with TritonServer(models, log=tmp_path / "log", extra_args=control) as server:
        async with opened(server.grpc_address) as (engine, store):
            slot = await reserved(engine, store, "old")
            await engine.encode("fake", picture(), slot, RequestContext())
            digest = engine.models["fake"].digest
            write_drawing_pair(models, "fake", steps=1)
            with asking.client(server) as client:
                for network in ("encoder", "decoder"):
                    client.load_model(f"fake_{network}")
            await eventually(lambda: engine.models["fake"].digest != digest)
            with pytest.raises(EngineUnavailable):
                await engine.decode("fake", slot.as_embedding(), clicks(), RequestContext())
            fresh = await reserved(engine, store, "new")
            await engine.encode("fake", picture(), fresh, RequestContext())
            await engine.decode("fake", fresh.as_embedding(), clicks(), RequestContext())


async def test_an_odd_model_of_somebody_else_disturbs_nobody(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_models(models)
    config = models / "other_encoder" / "config.pbtxt"
    lines = config.read_text().splitlines()
    config.write_text("\n".join(line for line in lines if "samserve.image_size" not in line))
    with TritonServer(models, log=tmp_path / "log") as server:
        async with opened(server.grpc_address) as (engine, _):
            assert list(engine.models) == ["fake"]
            assert await engine.ready()
