"""Which models the in-process engine serves: those of the package and of the user's folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from samserve.app import default_repository, select_models
from samserve.engines.onnx import OnnxEngine
from samserve.errors import EngineUnavailable
from samserve.models.selection import Selection, of_user, read_default, write_default
from samserve.settings import EngineSettings
from samserve.telemetry.metrics import Metrics
from structlog.testing import capture_logs

PACKAGED = default_repository()


def add(folder: Path, name: str) -> Path:
    """Add the default model under another name; return the folder."""
    for role in ("encoder", "decoder"):
        source, target = PACKAGED / f"sam_tiny_{role}", folder / f"{name}_{role}"
        (target / "1").mkdir(parents=True)
        text = (source / "config.pbtxt").read_text().replace("sam_tiny", name)
        (target / "config.pbtxt").write_text(text)
        (target / "1" / "model.onnx").symlink_to(source / "1" / "model.onnx")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return add(tmp_path / "models", "alpha")


def names(selection: Selection) -> list[str]:
    return [bundle.info.name for bundle in selection.bundles]


def engine(selection: Selection) -> OnnxEngine:
    return OnnxEngine(selection, 1, Metrics(CollectorRegistry()))


def test_a_model_of_the_user_is_served_and_is_not_the_default(folder: Path) -> None:
    selection = of_user(PACKAGED, folder)

    assert list(engine(selection).models) == ["sam_tiny", "alpha"]
    assert selection.problems == ()


def test_the_users_default_applies_until_it_is_unset(folder: Path) -> None:
    write_default(folder, "alpha")
    changed = of_user(PACKAGED, folder)
    write_default(folder, "")

    assert list(engine(changed).models) == ["alpha", "sam_tiny"]
    assert read_default(folder) == ""
    assert of_user(PACKAGED, folder).default == "sam_tiny"


def test_a_named_default_precedes_that_of_the_user(folder: Path) -> None:
    write_default(folder, "alpha")

    assert of_user(PACKAGED, folder, "sam_tiny").default == "sam_tiny"


def test_only_named_models_are_served_the_first_as_default(folder: Path) -> None:
    add(folder, "beta")
    write_default(folder, "sam_tiny")

    one = of_user(PACKAGED, folder, only=["beta"])
    two = of_user(PACKAGED, folder, only=["beta", "alpha"])

    assert (names(one), one.default) == (["beta"], "beta")
    assert (sorted(names(two)), two.default) == (["alpha", "beta"], "beta")
    with pytest.raises(EngineUnavailable, match="no model 'gamma'; available: alpha, beta, sam_t"):
        of_user(PACKAGED, folder, only=["gamma"])


def test_a_model_of_the_package_precedes_one_of_the_same_name(folder: Path) -> None:
    add(folder, "sam_tiny")

    selection = of_user(PACKAGED, folder)

    found = {bundle.info.name: bundle.graphs["encoder"] for bundle in selection.bundles}
    assert found["sam_tiny"].is_relative_to(PACKAGED)
    assert sorted(found) == ["alpha", "sam_tiny"]
    (problem,) = selection.problems
    assert f"'sam_tiny' in {folder} is not served" in problem
    assert "another --name" in problem


@pytest.mark.parametrize("damage", ["config", "decoder", "file"])
def test_a_broken_model_of_the_user_does_not_prevent_the_others(folder: Path, damage: str) -> None:
    decoder = add(folder, "beta") / "beta_decoder"
    if damage == "config":
        (decoder / "config.pbtxt").write_text("{")
    elif damage == "file":
        (decoder / "1" / "model.onnx").unlink()
    else:
        decoder.rename(folder.parent / "moved")

    selection = of_user(PACKAGED, folder)

    assert sorted(names(selection)) == ["alpha", "sam_tiny"]
    (problem,) = selection.problems
    assert f"in {folder}: pull or export it again, or delete {folder / 'beta'}_*" in problem
    with pytest.raises(EngineUnavailable, match="pull or export it again"):
        of_user(PACKAGED, folder, only=["beta"])
    with pytest.raises(EngineUnavailable, match="pull or export it again"):
        of_user(PACKAGED, folder, "beta")


def test_a_graph_of_the_user_that_cannot_be_loaded_is_logged(folder: Path) -> None:
    graph = folder / "alpha_decoder" / "1" / "model.onnx"
    graph.unlink()
    graph.write_bytes(b"damaged")

    with capture_logs() as logs:
        served = engine(of_user(PACKAGED, folder))

    assert list(served.models) == ["sam_tiny"]
    (event,) = logs
    assert (event["event"], event["log_level"]) == ("model not served", "error")
    assert f"delete {folder / 'alpha'}_*" in event["error"]
    with pytest.raises(EngineUnavailable, match="'alpha' cannot be loaded"):
        engine(of_user(PACKAGED, folder, only=["alpha"]))


def test_a_default_that_is_missing_is_reported_with_the_command_that_changes_it(
    folder: Path,
) -> None:
    write_default(folder, "gone")

    with pytest.raises(EngineUnavailable, match=r"'gone' is missing.*models default --unset"):
        of_user(PACKAGED, folder)
    with pytest.raises(EngineUnavailable, match=r"'other' is missing; available: alpha, sam_tiny$"):
        of_user(PACKAGED, folder, "other")


def test_a_configured_repository_excludes_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(folder.parent / "data"))
    add(folder.parent / "data" / "samserve" / "models", "mine")

    both = select_models(EngineSettings())
    named = select_models(EngineSettings(models=" mine , sam_tiny "))
    one = select_models(EngineSettings(model_repository=folder))

    assert sorted(names(both)) == ["mine", "sam_tiny"]
    assert named.default == "mine"
    assert names(one) == ["alpha"]


def test_a_folder_that_cannot_be_read_does_not_prevent_the_models_of_the_package(
    tmp_path: Path,
) -> None:
    selection = of_user(PACKAGED, tmp_path / ("long" * 100))

    assert (names(selection), selection.default) == (["sam_tiny"], "sam_tiny")
    (problem,) = selection.problems
    assert problem.endswith("cannot be read: File name too long")


def test_without_a_folder_the_models_of_the_package_are_served(tmp_path: Path) -> None:
    for missing in (None, tmp_path / "missing"):
        selection = of_user(PACKAGED, missing)
        assert (names(selection), selection.default) == (["sam_tiny"], "sam_tiny")
