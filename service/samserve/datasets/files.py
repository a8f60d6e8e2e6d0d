"""Files and folders of data sets: found in order, written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from samserve.errors import InvalidRequest


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, ordered; one folder at a time is in memory.

    Names that start with a dot are left out, and links to a folder that they are in.  Raises
    ``OSError``.
    """
    with os.scandir(folder) as entries:
        ordered = sorted((each.name, each.is_dir()) for each in entries if not _is_loop(each))
    for name, is_folder in ordered:
        if name.startswith("."):
            continue
        if is_folder:
            yield from walk(folder / name)
        else:
            yield folder / name


def _is_loop(entry: os.DirEntry[str]) -> bool:
    if not entry.is_symlink():
        return False
    return Path(os.path.realpath(entry.path)) in Path(os.path.abspath(entry.path)).parents


def check_name(file_name: str) -> str:
    """Return the name of an image if it is a path that stays in its folder.

    Raises `InvalidRequest` for others, also for texts that cannot be names of files.
    """
    parts = file_name.split("/")
    wrong = any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts)
    if wrong or not _can_be_encoded(file_name):
        raise InvalidRequest(repr(file_name[:200]), "is not a relative path of an image")
    return file_name


def _can_be_encoded(file_name: str) -> bool:
    """Return whether a text has no surrogates, except those of bytes that are not UTF-8."""
    try:
        os.fsencode(file_name)
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that becomes *path* when the block ends, and is removed if it fails.

    The folder of *path* is made.  A file of that name is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            yield file
        temporary.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a folder that becomes *path*, which must not exist, when the block ends.

    It is removed if the block fails.  Raises ``OSError``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _temporary(path: Path) -> Path:
    # Names of files may have up to 255 bytes, and other processes may write the same one.
    return path.with_name(f".{os.getpid()}-{secrets.token_hex(8)}.part")
