"""Publishing folders atomically: all of them appear, complete, or none."""

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
"""File that is locked while the process runs; its content is the path of the target."""

_OLD = ".old"


class Staging:
    """A folder on the target's file system, whose subfolders are renamed into the target."""

    def __init__(self, target: Path, folder: Path) -> None:
        self._target, self.folder = target, folder

    def publish(self, names: list[str]) -> None:
        """Move the folders of these names to the target, and replace existing ones.

        An error or interrupt restores the previous folders.
        """
        done: list[tuple[Path, Path]] = []
        try:
            for name in names:
                target = self._target / name
                # A folder cannot be renamed over one with files: the old one is moved aside first.
                if os.path.lexists(target):
                    self._move(target, self.folder / f"{name}{_OLD}", done)
                self._move(self.folder / name, target, done)
        except BaseException:
            for source, target in reversed(done):
                if os.path.lexists(target):
                    target.rename(source)
            raise

    def _move(self, source: Path, target: Path, done: list[tuple[Path, Path]]) -> None:
        # Recorded before the rename, since an interrupt may happen at any time.
        done.append((source, target))
        source.rename(target)


@contextmanager
def staging(target: Path) -> Iterator[Staging]:
    """Yield a staging folder for *target*, which is created; the staging folder is always removed.

    It is next to *target*, or inside if *target* is a file system of its own.  Staging folders of
    killed processes are removed first.
    """
    target.mkdir(parents=True, exist_ok=True)
    remove_stale(target)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_staging_parent(target)))
    try:
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(str(target.resolve()))
            lock.flush()
            yield Staging(target, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale(target: Path) -> None:
    """Remove the staging folders of killed processes.

    A folder that such a process had moved aside and not yet replaced is restored.
    """
    for lock in _staging_parent(target).glob(f"{PREFIX}*/{LOCK}"):
        try:
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _restore(lock.parent, file.read())
        except OSError:
            continue  # in use, just removed, or owned by another user
        shutil.rmtree(lock.parent, ignore_errors=True)


def _restore(folder: Path, target: str) -> None:
    for old in folder.glob(f"*{_OLD}") if target else ():
        missing = Path(target) / old.name.removesuffix(_OLD)
        # An existing folder is newer.
        if not os.path.lexists(missing):
            old.rename(missing)


def _staging_parent(target: Path) -> Path:
    """Return the parent of staging folders: Triton loads every folder in its repository."""
    parent = target.resolve().parent
    same_device = parent.stat().st_dev == target.stat().st_dev
    return parent if same_device and os.access(parent, os.W_OK) else target
