"""Parts of a source, so that several processes annotate it without talking to each other."""

from __future__ import annotations

import re
from dataclasses import dataclass

from samserve.annotate.names import number_of
from samserve.errors import InvalidRequest

MAX_SHARDS = 100_000


@dataclass(frozen=True, slots=True)
class Shard:
    """One of *count* parts; ``index`` counts from 0, as the pods of an indexed Job do.

    An image belongs to a part by the hash of its name: images that are added or removed do not move
    others.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard of a text such as ``0/4``.  Raises `samserve.errors.InvalidRequest`."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        index, count = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 0 <= index < count <= MAX_SHARDS:
            raise InvalidRequest(
                "shard",
                f"{text!r}: expected I/N with I from 0 to N - 1, and N of at most {MAX_SHARDS}",
            )
        return cls(index, count)

    def selects(self, name: str) -> bool:
        """Return whether the image of that name belongs to this part."""
        return number_of("shard", name) % self.count == self.index

    def __str__(self) -> str:
        """Return the text that `parse` takes."""
        return f"{self.index}/{self.count}"
