"""Promotions that are refused: nothing changes, on any gateway, in Triton and in the repository."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from samserve.export.stamp import remove_stamp, stamp
from samserve.models.digest import graph_digests
from samserve.models.repository import discover
from samserve.types import ModelInfo
from samserve.v1 import samserve_pb2 as pb

from tests import sample_images
from tests.engines.promotion.clients import version_of
from tests.engines.promotion.models import NAME, declare, write_model
from tests.engines.promotion.services import Services, command, served
from tests.security.credentials import KeyFile

KINDS = ["onnx", pytest.param("triton", marks=pytest.mark.slow)]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_model(tmp_path / "models", 1)
    return tmp_path / "models"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    write_model(tmp_path / "new", 2, name="tuned")
    return tmp_path / "new"


def only_version(repository: Path) -> ModelInfo:
    """Return the model that a server serves after a restart: the first version, alone."""
    (bundle,) = discover(repository)
    assert set(bundle.versions.values()) == {"1"}
    assert not list(repository.glob("*/2"))
    return bundle.info


async def check_unchanged(services: Services, repository: Path) -> None:
    """Check that the first version is in service, alone, here and after a restart."""
    info = only_version(repository)
    for service, stub in services:
        request = pb.PredictRequest(
            image=sample_images.image(), prompts=[sample_images.point_prompt()]
        )
        masks = (await stub.Predict(request)).results[0].masks
        assert version_of(mask.predicted_iou for mask in masks) == 1
        assert service.engine.models[NAME].digest == info.digest
        versions = service.engine._versions  # type: ignore[attr-defined]  # of both engines
        assert not getattr(versions, "_versions", versions).others


@pytest.mark.parametrize("kind", KINDS)
async def test_too_little_memory_for_both_versions(
    kind: str, repository: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(kind, repository, max_model_bytes=20_000_000) as services:
        code = await command(services, repository, "promote", NAME, str(new))
        await check_unchanged(services, repository)

    err = capsys.readouterr().err
    assert code == 1
    assert "engine.max_model_bytes of 20000000" in err
    assert "MEMORY_EXHAUSTED" in err


@pytest.mark.parametrize("kind", KINDS)
async def test_graph_that_the_engine_cannot_load(
    kind: str, repository: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = new / "tuned_decoder" / "1" / "model.onnx"
    remove_stamp(path)
    model = onnx.load(path)
    model.graph.node[-1].op_type = "NoSuchOperator"
    onnx.save(model, path)
    paths = {"encoder": new / "tuned_encoder" / "1" / "model.onnx", "decoder": path}
    remove_stamp(paths["encoder"])
    digests = graph_digests(paths)
    for each in paths.values():
        stamp(each, digests["encoder"])
    declare(new, "tuned", digests)
    async with served(kind, repository) as services:
        code = await command(services, repository, "promote", NAME, str(new))
        await check_unchanged(services, repository)

    assert code == 1
    assert "PROMOTION_REFUSED" in capsys.readouterr().err


async def test_gateway_without_the_files_undoes_the_others(
    repository: Path, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "elsewhere"
    write_model(other, 1)
    async with served("onnx", repository) as first, served("onnx", other) as second:
        both = [*first, *second]
        code = await command(both, repository, "promote", NAME, str(new))
        await check_unchanged(both, repository)

    err = capsys.readouterr().err
    assert code == 1
    assert second[0][0].address in err
    assert f"this server reads its models from {other}" in err


async def test_unreachable_gateway(
    repository: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served("onnx", repository) as services:
        arguments = ("promote", NAME, str(new), "--server", "127.0.0.1:1")
        code = await command(services, repository, *arguments)
        await check_unchanged(services, repository)

    assert code == 1
    assert "127.0.0.1:1: the server is unreachable" in capsys.readouterr().err


async def test_caller_without_the_permission(
    repository: Path, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    token = tmp_path / "token"
    token.write_text(keys.add("default", "predict", "embed"))
    auth = {"auth": {"api_keys_file": keys.path}}
    async with served("onnx", repository, **auth) as services:
        arguments = ("promote", NAME, str(new), "--token-file", str(token))
        code = await command(services, repository, *arguments)
        digest = services[0][0].engine.models[NAME].digest

    assert code == 1
    assert "the permission models_admin is required" in capsys.readouterr().err
    assert digest == only_version(repository).digest


async def test_same_version_again_and_a_rollback_too_many(
    repository: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served("onnx", repository) as services:
        codes = [
            await command(services, repository, *arguments)
            for arguments in (
                ("rollback", NAME),
                ("promote", NAME, str(new)),
                ("promote", NAME, str(new)),
                ("rollback", NAME),
                ("rollback", NAME),
            )
        ]

    err = capsys.readouterr().err
    assert codes == [1, 0, 1, 0, 1]
    assert "has these weights already" in err
    assert err.count("has no version before 1") == 2


async def test_fake_engine_has_no_versions(
    repository: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served("fake", repository) as services:
        code = await command(services, repository, "promote", "fake", str(new))

    assert code == 1
    assert "there is no model 'fake'" in capsys.readouterr().err


@pytest.mark.slow
async def test_triton_without_model_control(
    repository: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served("triton", repository, control=()) as services:
        code = await command(services, repository, "promote", NAME, str(new))
        await check_unchanged(services, repository)

    assert code == 1
    assert "--model-control-mode=explicit" in capsys.readouterr().err
