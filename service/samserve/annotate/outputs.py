"""The files of an output: a folder of this machine, or a URL of `fsspec`."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from samserve.annotate.locations import is_local, locate, without_secrets

_PARTIAL = ".partial"
# No file is written for so long.
_MAX_AGE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Output:
    """Files below a folder.  Its methods block and raise ``OSError``.

    Files appear as a whole.  Those of this machine are written in the folder ``.partial`` and then
    renamed; the stores behind URLs replace an object as a whole, or a file system without this
    property leaves a part, which readers of records take for none.
    """

    url: str

    def __str__(self) -> str:
        """Return the path or URL, without secrets."""
        return without_secrets(self.url)

    def read(self, path: str) -> bytes:
        """Return the content of a file."""
        file_system, root = locate(self.url, "out")
        return cast("bytes", file_system.cat_file(f"{root}/{path}"))

    def write(self, path: str, data: bytes) -> None:
        """Write or replace a file."""
        file_system, root = locate(self.url, "out")
        if not is_local(file_system):
            file_system.pipe_file(f"{root}/{path}", data)
            return
        with self._partial(Path(root), path) as partial:
            partial.write_bytes(data)

    @contextmanager
    def replacing(self, path: str) -> Iterator[Path]:
        """Yield the path of a file of this machine to write.

        It replaces the file *path* if the block succeeds.
        """
        file_system, root = locate(self.url, "out")
        if is_local(file_system):
            with self._partial(Path(root), path) as partial:
                yield partial
            return
        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder, "file")
            yield partial
            file_system.put_file(str(partial), f"{root}/{path}")

    def exists(self, path: str) -> bool:
        """Return whether there is a file or folder."""
        file_system, root = locate(self.url, "out")
        return bool(file_system.exists(f"{root}/{path}"))

    def is_file(self) -> bool:
        """Return whether the output itself is a file."""
        file_system, root = locate(self.url, "out")
        return bool(file_system.isfile(root))

    def remove(self, path: str) -> None:
        """Remove a file if there is one."""
        file_system, root = locate(self.url, "out")
        with suppress(FileNotFoundError):
            file_system.rm_file(f"{root}/{path}")

    def find(self, folder: str) -> Iterator[str]:
        """Yield the paths of the files below a folder, relative to the output."""
        file_system, root = locate(self.url, "out")
        for path in file_system.find(f"{root}/{folder}"):
            yield path.strip("/").removeprefix(root.strip("/")).lstrip("/")

    def prepare(self) -> None:
        """Create the folder, and remove what killed processes have left in it."""
        file_system, root = locate(self.url, "out")
        if not is_local(file_system):
            return
        partial = Path(root, _PARTIAL)
        partial.mkdir(parents=True, exist_ok=True)
        for path in partial.iterdir():
            with suppress(OSError):
                if _is_abandoned(path):
                    path.unlink()

    @contextmanager
    def _partial(self, root: Path, path: str) -> Iterator[Path]:
        target = root / path
        partial = root / _PARTIAL / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.parent.mkdir(exist_ok=True)
        try:
            yield partial
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    """Return whether the process that writes a file has ended."""
    # A writer may add a dot and more to a name.
    host, pid, *_ = [*path.name.lstrip(".").rsplit("-", 2), "", ""]
    if host == socket.gethostname() and pid.isdigit() and not _is_running(int(pid)):
        return True
    return time.time() - path.stat().st_mtime > _MAX_AGE_S


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
