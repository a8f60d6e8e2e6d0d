"""Warnings about security-relevant files that every user may write."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

import structlog


def warn_if_world_writable(paths: Sequence[Path]) -> None:
    """Log each file that other users may write or replace.

    It is no error: some foreign file systems report these permissions for every file.
    """
    log = structlog.get_logger("samserve.files")
    for path in paths:
        for found in _world_writable(path):
            log.warning("insecure file permissions", path=str(found), used_as=str(path))


def _world_writable(path: Path) -> list[Path]:
    """Check the file itself, its folder, and the folder of a link to it."""
    real = path.resolve()
    folders = dict.fromkeys([real.parent, path.parent.absolute()])
    files = [real] if _may_be_changed(real) else []
    return files + [folder for folder in folders if _may_be_changed(folder, folder=True)]


def _may_be_changed(path: Path, *, folder: bool = False) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    # In a sticky folder, /tmp for instance, only the owner of a file can replace it.
    return bool(mode & stat.S_IWOTH) and not (folder and mode & stat.S_ISVTX)
