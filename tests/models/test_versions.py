"""Versions of a model in its repository: installed, put into service, and left by a crash."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from samserve.errors import PromotionRefused
from samserve.models import versions
from samserve.models.digest import MODEL_FILE, TUNED_FILE
from samserve.models.repository import discover
from samserve.types import ModelInfo

from tests.engines.weights import write_version

NAME = "fake"


def in_service(repository: Path) -> tuple[ModelInfo, dict[str, str]]:
    """Return what a server that starts now serves, and the version of each graph."""
    (bundle,) = discover(repository)
    for role, path in bundle.graphs.items():
        assert path.parent.name == bundle.versions[role]
    return bundle.info, dict(bundle.versions)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the first version."""
    write_version(tmp_path / "models", NAME, 1)
    return tmp_path / "models"


def source(folder: Path, version: int = 1, decoder: int = 2) -> Path:
    """Write a new model, under a name of its own."""
    write_version(folder, "tuned", version, decoder=decoder)
    return folder


def test_new_decoder_is_in_service_once_committed_and_the_previous_one_after_a_rollback(
    repository: Path, tmp_path: Path
) -> None:
    before, _ = in_service(repository)
    new = versions.install(repository, NAME, source(tmp_path / "new"))
    installed = in_service(repository)
    versions.commit(repository, new)
    after = in_service(repository)
    versions.commit(repository, versions.previous(repository, NAME))

    assert installed == (before, {"encoder": "1", "decoder": "1"})
    assert after[1] == {"encoder": "1", "decoder": "2"}
    assert (after[0].name, after[0].digest) == (NAME, new.digest)
    assert after[0].encoder_digest == before.encoder_digest
    assert after[0].description == "version 2"
    assert in_service(repository) == installed
    with pytest.raises(PromotionRefused, match="no version before 1"):
        versions.previous(repository, NAME)


def test_weights_for_further_tuning_are_installed(repository: Path, tmp_path: Path) -> None:
    new = source(tmp_path / "new")
    (decoder,) = (path for path in new.rglob(MODEL_FILE) if "decoder" in str(path))
    decoder.with_name(TUNED_FILE).write_bytes(b"weights")

    versions.commit(repository, versions.install(repository, NAME, new))

    (bundle,) = discover(repository)
    assert bundle.graphs["decoder"].with_name(TUNED_FILE).read_bytes() == b"weights"


def test_rollback_goes_to_the_version_that_was_replaced(repository: Path, tmp_path: Path) -> None:
    second = versions.install(repository, NAME, source(tmp_path / "a"))
    versions.commit(repository, second)
    versions.commit(repository, versions.previous(repository, NAME))
    third = versions.install(repository, NAME, source(tmp_path / "b", decoder=3))
    versions.commit(repository, third)

    assert third.number == "3"
    assert versions.previous(repository, NAME).number == "1"


def test_crash_between_two_renames_leaves_both_networks_of_the_old_version(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = in_service(repository)
    new = versions.install(repository, NAME, source(tmp_path / "new", 2))
    write = versions._write

    def crash(path: Path, config: versions.ModelConfig) -> None:
        if path.parent.name == f"{NAME}_decoder":
            raise KeyboardInterrupt
        write(path, config)

    monkeypatch.setattr(versions, "_write", crash)
    with pytest.raises(KeyboardInterrupt):
        versions.commit(repository, new)
    monkeypatch.undo()
    crashed = in_service(repository)
    versions.commit(repository, new)

    assert crashed == before
    assert in_service(repository)[1] == {"encoder": "2", "decoder": "2"}


def test_removed_version_leaves_no_files(repository: Path, tmp_path: Path) -> None:
    before = in_service(repository)
    new = versions.install(repository, NAME, source(tmp_path / "new", 2))
    versions.remove(repository, new)

    left = [path.name for path in repository.rglob("*") if path.name in ("2", "version-2.pbtxt")]
    assert (left, in_service(repository)) == ([], before)


def edit(path: Path, pattern: str, text: str) -> None:
    """Replace a pattern in a configuration."""
    content = path.read_text()
    changed = re.sub(pattern, text, content)
    assert changed != content
    path.write_text(changed)


def other_file(folder: Path) -> None:
    """Replace the decoder by another one."""
    other = folder.parent / "other"
    write_version(other, "tuned", 1, decoder=3)
    shutil.copy(other / "tuned_decoder/1/model.onnx", folder / "tuned_decoder/1/model.onnx")


def other_encoder(folder: Path) -> None:
    """Replace the decoder by that of another encoder, with the digests of the files."""
    other = folder.parent / "other"
    write_version(other, "tuned", 2)
    path = folder / "tuned_decoder/1/model.onnx"
    shutil.copy(other / "tuned_decoder/1/model.onnx", path)
    digests = versions.graph_digests(
        {"encoder": folder / "tuned_encoder/1/model.onnx", "decoder": path}
    )
    digest = versions.bundle_digest(digests)
    for role in digests:
        edit(
            folder / f"tuned_{role}/config.pbtxt",
            r'("samserve.digest"[^"]*)"\w+"',
            rf'\1"{digest}"',
        )


def no_model(folder: Path) -> None:
    """Replace the model by another file."""
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("not a model")


def invalid_config(folder: Path) -> None:
    (folder / "tuned_decoder/config.pbtxt").write_text("{")


def same_weights(folder: Path) -> None:
    shutil.rmtree(folder)
    write_version(folder, "tuned", 1)


REFUSALS = {
    "other file": (other_file, "have the digest"),
    "other encoder": (other_encoder, "belongs to the encoder"),
    "no model": (no_model, "not a repository with a model"),
    "invalid configuration": (invalid_config, "not a repository with a model"),
    "same weights": (same_weights, "has these weights already"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_versions_change_nothing(case: str, repository: Path, tmp_path: Path) -> None:
    spoil, text = REFUSALS[case]
    new = source(tmp_path / "new")
    spoil(new)
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}

    with pytest.raises(PromotionRefused, match=text):
        versions.install(repository, NAME, new)

    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before
