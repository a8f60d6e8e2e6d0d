"""Downloads from the hub into its cache: what a hub or a cache that is not honest may cause."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub.constants
import pytest
from samserve.export.errors import ExportError
from samserve.export.sources import hub as sources
from samserve.export.sources.directory import MAX_JSON

from tests.export.hub import COMMIT, NAME, Hub, connect, running_hub, sha256
from tests.export.loopback import Reply, file

WEIGHTS = "model.safetensors"
CONTENT = {"config.json": b'{"model_type": "sam"}', WEIGHTS: b"weights" * 1000}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine with small files, and an empty cache."""
    monkeypatch.setattr("samserve.export.download.RETRIES", 0)
    with running_hub() as found:
        connect(found, tmp_path / "hub", monkeypatch)
        found.publish(CONTENT)
        yield found


@pytest.fixture
def cache(hub: Hub, tmp_path: Path) -> Path:
    """The folder of the model in the cache, which is empty."""
    return tmp_path / "hub" / "models--owner--name"


def error_of(action: Callable[[], object]) -> str:
    with pytest.raises(ExportError) as caught:
        action()
    text = str(caught.value)
    assert text.isprintable()
    return text


def listed(hub: Hub, **changes: object) -> None:
    """Change what the hub says about the model."""
    path = f"/api/models/{NAME}"
    known = json.loads(hub.server._scripts[path][0].body)  # type: ignore[union-attr]
    hub.server.on(path, Reply(200, json.dumps({**known, **changes}).encode()))


def resized(size: int) -> list[dict[str, object]]:
    """Return a list of files of which the configuration has another size."""
    small = {"rfilename": "config.json", "size": size, "blobId": "0" * 40}
    lfs = {"sha256": "0" * 64, "size": 7000, "pointerSize": 130}
    return [small, {"rfilename": WEIGHTS, "size": 7000, "lfs": lfs}]


def test_the_cache_is_that_of_huggingface_hub(hub: Hub, cache: Path) -> None:
    folder, commit = sources.fetch(NAME)

    found = huggingface_hub.snapshot_download(NAME, local_files_only=True)
    assert (Path(found), commit) == (folder, COMMIT)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    blob = cache / "blobs" / sha256(CONTENT[WEIGHTS])
    assert (folder / WEIGHTS).readlink() == Path("../../blobs", blob.name)


@pytest.mark.parametrize("commit", ["../../../../up", "main", f"{COMMIT}/..", None])
def test_a_commit_that_is_a_path_is_rejected(hub: Hub, cache: Path, commit: str | None) -> None:
    listed(hub, sha=commit)

    assert "the hub lists no commit" in error_of(lambda: sources.fetch(NAME))
    assert (hub.downloads, cache.exists()) == ([], False)


@pytest.mark.parametrize("siblings", [[{}], [{"rfilename": "config.json", "size": "much"}], 5])
def test_a_malformed_response_is_one_line(hub: Hub, siblings: object) -> None:
    listed(hub, siblings=siblings)

    text = error_of(lambda: sources.fetch(NAME))

    assert "the response of the hub is not valid" in text or "is not a model" in text


def test_files_with_other_names_are_not_downloaded(hub: Hub, cache: Path) -> None:
    names = ("model-../up.safetensors", "model-\n.safetensors", "model-\x1b[2J.safetensors")
    hub.publish({**CONTENT, **dict.fromkeys(names, b"-")})

    sources.fetch(NAME)

    assert hub.downloads == sorted(CONTENT)


@pytest.mark.parametrize("size", [MAX_JSON + 1, -1, 10**30])
def test_a_configuration_of_an_absurd_size_is_not_downloaded(hub: Hub, size: int) -> None:
    listed(hub, siblings=resized(size))

    assert f"config.json has {size} bytes" in error_of(lambda: sources.fetch(NAME))
    assert hub.downloads == []


@pytest.mark.parametrize("name", CONTENT)
def test_a_file_larger_than_listed_is_not_stored(hub: Hub, cache: Path, name: str) -> None:
    hub.offer(name, file(CONTENT[name] + b"more"))

    assert "more than the limit" in error_of(lambda: sources.fetch(NAME))
    stored = [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size]
    assert [path.name for path in stored if path.name.startswith(name)] == []


def test_a_damaged_file_outside_of_the_cache_is_not_deleted(
    hub: Hub, cache: Path, tmp_path: Path
) -> None:
    folder, _ = sources.fetch(NAME)
    own = tmp_path / "own.safetensors"
    own.write_bytes(b"of the user")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(own)

    assert "does not match the digest" in error_of(lambda: sources.fetch(NAME))
    assert own.read_bytes() == b"of the user"
    assert not os.path.lexists(folder / WEIGHTS)
    assert {path.name: path.read_bytes() for path in sources.fetch(NAME)[0].iterdir()} == CONTENT


def test_a_revision_does_not_lead_out_of_the_cache(hub: Hub, cache: Path, tmp_path: Path) -> None:
    info = hub.server._scripts[f"/api/models/{NAME}"][0]
    for revision in ("../../../out", str(tmp_path / "out")):
        quoted = revision.replace("/", "%2F")
        hub.server.on(f"/api/models/{NAME}/revision/{quoted}", info)

        assert sources.fetch(NAME, revision)[1] == COMMIT
    assert not list(tmp_path.rglob("out"))


def test_a_complete_cache_is_only_read(hub: Hub, cache: Path) -> None:
    sources.fetch(NAME)
    (cache / ".samserve.lock").unlink(missing_ok=True)
    before = {path: path.lstat().st_mtime_ns for path in cache.rglob("*")}

    sources.fetch(NAME)

    assert {path: path.lstat().st_mtime_ns for path in cache.rglob("*")} == before


def test_concurrent_commands_download_each_file_once(hub: Hub) -> None:
    with ThreadPoolExecutor(4) as threads:
        folders = list(threads.map(lambda _: sources.fetch(NAME)[0], range(4)))

    assert len(set(folders)) == 1
    assert hub.downloads == sorted(CONTENT)


def test_the_offline_mode_of_the_library_is_named(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    text = error_of(lambda: sources.fetch(NAME))

    assert text.endswith("HF_HUB_OFFLINE is set, and the model is not in its cache")
    assert hub.server.requests == []


def test_no_token_is_sent_without_tls(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://models.example")

    text = error_of(lambda: sources.fetch(NAME))

    assert text == "http://models.example: only https is allowed"


def test_a_full_disk_is_not_reported_as_an_unreachable_hub(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("samserve.export.sources.hub.Path.symlink_to", full)

    assert error_of(lambda: sources.fetch(NAME)).endswith(f"{cache}: No space left on device")
