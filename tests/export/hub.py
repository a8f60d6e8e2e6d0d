"""The part of the Hugging Face hub's HTTP interface that an export uses, on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.constants
import pytest

from tests.export.loopback import Loopback, Reply, Script, file, loopback

COMMIT = "5ca1ab1e" * 5
NAME = "owner/name"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def is_large(name: str) -> bool:
    """Return whether the hub stores a file by its SHA-256, not in git."""
    return name.endswith((".safetensors", ".bin"))


class Hub:
    """A hub with one model, ``owner/name``."""

    def __init__(self, server: Loopback) -> None:
        self.server = server

    def publish(self, content: Mapping[str, bytes], **digests: str) -> None:
        """Offer files at the revisions ``main``, ``v1`` and `COMMIT`.

        *digests*, by name without suffix, replace those of the content.
        """
        self.reject(404, "EntryNotFound")
        siblings = []
        for name, data in content.items():
            digest = digests.get(name.partition(".")[0])
            digest = digest or (sha256(data) if is_large(name) else git_blob(data))
            entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": digest}
            if is_large(name):
                lfs = {"sha256": digest, "size": len(data), "pointerSize": 130}
                entry |= {"lfs": lfs, "blobId": git_blob(b"pointer")}
            siblings.append(entry)
            self.offer(name, file(data, ETag=f'"{digest}"', **{"X-Repo-Commit": COMMIT}))
        info = json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode()
        for path in ("", "/revision/main", "/revision/v1", f"/revision/{COMMIT}"):
            self.server.on(f"/api/models/{NAME}{path}", Reply(200, info))

    def offer(self, name: str, *scripts: Script | Reply) -> None:
        """Set the responses to requests for a file."""
        self.server.on(self.path(name), *scripts)

    def path(self, name: str) -> str:
        return f"/{NAME}/resolve/{COMMIT}/{name}"

    def reject(self, status: int, code: str) -> None:
        """Set the error response of all other paths."""
        self.server.fallback = Reply(status, b"{}", {"X-Error-Code": code})

    @property
    def downloads(self) -> list[str]:
        requests = self.server.requests
        gets = [request.path for request in requests if request.method == "GET"]
        return sorted(path.rpartition("/")[2] for path in gets if "/resolve/" in path)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub without a model until the block ends."""
    with loopback() as server:
        yield Hub(server)


def connect(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make huggingface_hub in this process use *hub* and *cache*, without a token."""
    constants, address = huggingface_hub.constants, hub.server.address
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
