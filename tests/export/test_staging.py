"""Staging folders: never where Triton looks, and gone when nobody needs them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from samserve.export.staging import LOCK, PREFIX, staging


def test_it_lies_beside_the_repository(tmp_path: Path) -> None:
    repository = tmp_path / "models"

    with staging(repository) as stage:
        assert stage.folder.parent == tmp_path
        (stage.folder / "model").mkdir()
        assert list(repository.iterdir()) == []
        stage.publish(["model"])

    assert [path.name for path in tmp_path.rglob("*")] == ["models", "model"]


def test_it_lies_inside_where_the_parent_is_another_disk_or_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models"
    monkeypatch.setattr(os, "access", lambda *_: False)

    with staging(repository) as stage:
        assert stage.folder.parent == repository

    assert list(repository.iterdir()) == []


def test_what_a_killed_export_left_is_removed_and_a_running_one_is_not(tmp_path: Path) -> None:
    left = tmp_path / f"{PREFIX}left"
    left.mkdir()
    (left / LOCK).touch()
    (left / "model").mkdir()

    with staging(tmp_path / "models") as running, staging(tmp_path / "models") as other:
        assert not left.exists()
        assert running.folder.is_dir()
        assert other.folder != running.folder


def test_publishing_replaces_what_is_there(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with staging(tmp_path / "models") as stage:
            (stage.folder / "model").mkdir()
            (stage.folder / "model" / "file").write_text(content)
            stage.publish(["model"])

    assert (tmp_path / "models" / "model" / "file").read_text() == "new"
    assert not list(tmp_path.glob(f"{PREFIX}*"))


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_publishing_that_is_interrupted_leaves_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    repository = tmp_path / "models"
    names = ["encoder", "decoder"]
    for name in names:
        (repository / name).mkdir(parents=True)
        (repository / name / "file").write_text(f"old {name}")
    rename, done = Path.rename, []

    def interrupted(source: Path, target: Path) -> Path:
        done.append(target)
        if len(done) == moves + 1:
            raise KeyboardInterrupt
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with staging(repository) as stage:
        for name in names:
            (stage.folder / name).mkdir()
        with pytest.raises(KeyboardInterrupt):
            stage.publish(names)

    assert sorted(path.name for path in repository.iterdir()) == sorted(names)
    for name in names:
        assert (repository / name / "file").read_text() == f"old {name}"


def test_what_is_there_may_be_a_link_to_nowhere(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    repository.mkdir()
    (repository / "model").symlink_to(tmp_path / "nowhere")

    with staging(repository) as stage:
        (stage.folder / "model").mkdir()
        stage.publish(["model"])

    assert (repository / "model").is_dir()
    assert not (repository / "model").is_symlink()
