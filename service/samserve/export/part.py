"""What has arrived of a file so far, on the disk, so that another run can go on from there."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the bytes of a part came from.

    ``validator`` is what If-Range takes: a strong ETag or Last-Modified, None without either.
    ``total`` is the size of the whole file in bytes, None if the server told none.
    """

    url: str
    validator: str | None
    total: int | None


class Part:
    """The file ``<target>.part``, and its origin in ``<target>.part.json``."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self._note = target.with_name(f"{target.name}.part.json")
        self._target = target

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return self.path.stat().st_size if self.path.exists() else 0

    def origin(self, url: str) -> Origin | None:
        """Read the origin; None without a part, or if it came from another URL."""
        if not self.size:
            return None
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            note = None
        match note:
            case {"url": found, "validator": str() | None, "total": int() | None} if found == url:
                return Origin(url, note["validator"], note["total"])
        # A note that is missing, cut or of another version: the bytes are nobody's.
        return None

    def begin(self, origin: Origin) -> None:
        """Start anew.  The note comes second: it never describes bytes of another origin."""
        self.path.write_bytes(b"")
        self._note.write_text(f"{json.dumps(asdict(origin))}\n", encoding="utf-8")

    def delete(self) -> None:
        """Forget all that has arrived."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def publish(self) -> None:
        """Give the file its name, once all of it is on the disk."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(self._target)
        self._note.unlink(missing_ok=True)
