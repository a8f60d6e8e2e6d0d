"""Folders that appear whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".samserve-staging-"
LOCK = "lock"
"""Held as long as the process lives; its content is the target."""

_OLD = ".old"


class Staging:
    """A folder on the target's disk, whose sub-folders are renamed into place at the end."""

    def __init__(self, target: Path, folder: Path) -> None:
        self._target, self.folder = target, folder

    def publish(self, names: list[str]) -> None:
        """Put the folders of these names in place, instead of those that are there.

        Fails or is interrupted as a whole: then the old ones are there again.
        """
        done: list[tuple[Path, Path]] = []
        try:
            for name in names:
                target = self._target / name
                # A folder cannot be renamed over one that has files: the old one steps aside first.
                if os.path.lexists(target):
                    self._move(target, self.folder / f"{name}{_OLD}", done)
                self._move(self.folder / name, target, done)
        except BaseException:
            for source, target in reversed(done):
                if os.path.lexists(target):
                    target.rename(source)
            raise

    def _move(self, source: Path, target: Path, done: list[tuple[Path, Path]]) -> None:
        # Noted before it happens: an interrupt may come at any moment.
        done.append((source, target))
        source.rename(target)


@contextmanager
def staging(target: Path) -> Iterator[Staging]:
    """Open a staging folder for *target*, which is made; whatever happens, it is removed.

    It lies beside *target*, or inside if that is a disk of its own.  What a killed process left
    there is cleared up first.
    """
    target.mkdir(parents=True, exist_ok=True)
    clear_up(target)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_place(target)))
    try:
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(str(target.resolve()))
            lock.flush()
            yield Staging(target, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear_up(target: Path) -> None:
    """Remove the staging folders of killed processes.

    A folder that such a process had moved aside, and not replaced yet, is put back.
    """
    for lock in _place(target).glob(f"{PREFIX}*/{LOCK}"):
        try:
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _put_back(lock.parent, file.read())
        except OSError:
            continue  # in use by an export, just ended, or of another user
        shutil.rmtree(lock.parent, ignore_errors=True)


def _put_back(folder: Path, target: str) -> None:
    for old in folder.glob(f"*{_OLD}") if target else ():
        missing = Path(target) / old.name.removesuffix(_OLD)
        # What is there now is newer.
        if not os.path.lexists(missing):
            old.rename(missing)


def _place(target: Path) -> Path:
    """Choose where to stage: Triton takes every folder in its repository for a model."""
    beside = target.resolve().parent
    same_disk = beside.stat().st_dev == target.stat().st_dev
    return beside if same_disk and os.access(beside, os.W_OK) else target
