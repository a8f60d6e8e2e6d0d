"""Staging folders: outside of the repository if possible, and removed at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from samserve.export.staging import LOCK, PREFIX, remove_stale, staging


def test_the_staging_folder_is_next_to_the_repository(tmp_path: Path) -> None:
    repository = tmp_path / "models"

    with staging(repository) as stage:
        assert stage.folder.parent == tmp_path
        (stage.folder / "model").mkdir()
        assert list(repository.iterdir()) == []
        stage.publish(["model"])

    assert [path.name for path in tmp_path.rglob("*")] == ["models", "model"]


def test_the_staging_folder_is_inside_if_the_parent_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models"
    monkeypatch.setattr(os, "access", lambda *_: False)

    with staging(repository) as stage:
        assert stage.folder.parent == repository

    assert list(repository.iterdir()) == []


def test_the_folder_of_a_killed_export_is_removed_but_not_of_a_running_one(tmp_path: Path) -> None:
    stale = tmp_path / f"{PREFIX}stale"
    stale.mkdir()
    (stale / LOCK).touch()
    (stale / "model").mkdir()

    with staging(tmp_path / "models") as running, staging(tmp_path / "models") as other:
        assert not stale.exists()
        assert running.folder.is_dir()
        assert other.folder != running.folder


def test_publishing_replaces_existing_folders(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with staging(tmp_path / "models") as stage:
            (stage.folder / "model").mkdir()
            (stage.folder / "model" / "file").write_text(content)
            stage.publish(["model"])

    assert (tmp_path / "models" / "model" / "file").read_text() == "new"
    assert not list(tmp_path.glob(f"{PREFIX}*"))


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_interrupted_publishing_restores_the_old_folders(
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


KILLED = """
import os, sys
from pathlib import Path
from samserve.export.staging import staging

rename, done = Path.rename, []

def killed(source, target):
    if len(done) == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
    done.append(target)
    return rename(source, target)

Path.rename = killed
with staging(Path(sys.argv[1])) as stage:
    for name in ("encoder", "decoder"):
        (stage.folder / name).mkdir()
        (stage.folder / name / "file").write_text("new")
    stage.publish(["encoder", "decoder"])
"""


@pytest.mark.parametrize(
    ("moves", "expected"),
    [(1, ["old", "old"]), (2, ["new", "old"]), (3, ["new", "old"])],
    ids=["first moved aside", "first replaced", "second moved aside"],
)
def test_a_folder_that_a_killed_process_moved_aside_is_restored(
    tmp_path: Path, moves: int, expected: list[str]
) -> None:
    repository, names = tmp_path / "models", ["encoder", "decoder"]
    for name in names:
        (repository / name).mkdir(parents=True)
        (repository / name / "file").write_text("old")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(repository), str(moves)], check=False)
    remove_stale(repository)

    assert ended.returncode == -signal.SIGKILL
    assert [(repository / name / "file").read_text() for name in names] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_broken_link_is_replaced(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    repository.mkdir()
    (repository / "model").symlink_to(tmp_path / "nowhere")

    with staging(repository) as stage:
        (stage.folder / "model").mkdir()
        stage.publish(["model"])

    assert (repository / "model").is_dir()
    assert not (repository / "model").is_symlink()
