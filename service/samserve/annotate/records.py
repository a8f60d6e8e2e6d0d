"""The records of a run: one SA-1B file for each image, written atomically.

Below the output, a folder or a URL of `fsspec`:

* ``records/<name>.json``: the record of the image ``<name>``, with an additional key ``samserve``
  whose ``key`` identifies file, model and options;
* ``dataset.json``: the source, the model and the options, for people and for `samserve dataset`;
* ``annotations.json``: all records as one COCO file, written at the end of a run without shards;
* ``failures.jsonl``: the images that have failed, with the reason (of one shard:
  ``failures-<i>-of-<n>.jsonl``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from samserve.annotate.outputs import Output
from samserve.datasets import sa1b
from samserve.datasets.types import ImageRecord
from samserve.errors import InvalidRequest

FORMAT_VERSION = 1
"""A record of another version is written again."""
_FOLDER = "records"
_SUFFIX = ".json"


def record_key(sha256: str, digest: str, fingerprint: Mapping[str, Any]) -> str:
    """Return what identifies a record: the file, the model's weights and the options."""
    values = [FORMAT_VERSION, sha256, digest, fingerprint]
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Records:
    """The records below an output.  Picklable; its methods block.

    They raise ``OSError`` for an output that cannot be used, and `samserve.errors.InvalidRequest`
    for the name of an image that cannot be that of a record.
    """

    url: str

    def key(self, name: str) -> str | None:
        """Return the key of the record of an image; None if there is no complete one."""
        key = self.metadata(name).get("key")
        return key if isinstance(key, str) else None

    def metadata(self, name: str) -> Mapping[str, Any]:
        """Return what the record of an image says of its origin; empty without a complete one."""
        try:
            found = json.loads(self._output().read(_path(name))).get("samserve")
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, RecursionError):
            # Not one of ours, or cut off when a machine lost power.
            return {}
        return found if isinstance(found, dict) else {}

    def read(self, name: str) -> ImageRecord | None:
        """Return the record of an image; None if there is none.

        Raises `samserve.errors.InvalidRequest` for a record that is not valid.
        """
        path = _path(name)
        try:
            return sa1b.loads(self._output().read(path), path)
        except FileNotFoundError:
            return None

    def write(self, record: ImageRecord) -> None:
        """Write or replace the record of an image; a reader sees all of it or the former one."""
        self._output().write(_path(record.file_name), sa1b.dumps(record))

    def names(self) -> Iterator[str]:
        """Yield the names of the images that have a record."""
        for path in self._output().find(_FOLDER):
            if path.endswith(_SUFFIX):
                yield path.removeprefix(f"{_FOLDER}/").removesuffix(_SUFFIX)

    def _output(self) -> Output:
        return Output(self.url)


def _path(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/") or not name:
        # Of an archive; the record would be outside of the output.
        raise InvalidRequest("image", f"the name {name!r} leaves the folder")
    return f"{_FOLDER}/{name}{_SUFFIX}"
