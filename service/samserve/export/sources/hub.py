"""Checkpoints on the Hugging Face hub.

Files are verified against the digests that the hub lists for a commit: a SHA-256 for large files,
the id of git's blob for others.  huggingface_hub itself verifies only sizes, has no limit, and
starts an interrupted download again from the beginning: `samserve.export.download` downloads the
files into its cache, which has blobs and, for each commit, links to them.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from samserve.export.download import MAX_BYTES, check_url, checksum_of, download, parse_checksum
from samserve.export.errors import ExportError
from samserve.export.sources.directory import CONFIG, MAX_JSON, read_config
from samserve.export.sources.files import shown

T = TypeVar("T")

_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_OLDER_WEIGHTS = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")

_KINDS = {64: "sha256", 40: "git-blob-sha1"}
"""The cache names each file by its digest, whose length is that of one of these kinds."""

_COMMIT = re.compile("[0-9a-f]{40}")
_FILE_NAME = re.compile("[A-Za-z0-9._-]+")

_UNREACHABLE, _OFFLINE = "the hub is unreachable", "HF_HUB_OFFLINE is set"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

Progress = Callable[[int, int | None], None]


class NotAvailable(ExportError):
    """The hub does not provide a model; ``reason`` says why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: not available from the hub: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file at a commit; ``checksum`` is as returned by `parse_checksum`."""

    name: str
    size: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Published:
    """The files of a model at a commit that an export needs, the configuration first.

    ``revision`` is the requested branch, tag or commit.
    """

    name: str
    revision: str
    commit: str
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def missing(self) -> tuple[HubFile, ...]:
        """The files that are not in the hub's cache."""
        return tuple(file for file in self.files if not _is_cached(self, file))


def page(name: str) -> str:
    """Return the address of the page of a model."""
    from huggingface_hub import constants  # noqa: PLC0415  (slow, and rarely needed)

    return f"{constants.ENDPOINT}/{name}"


def cache_folder(name: str) -> Path:
    """Return the folder of a model in the hub's cache, which may not exist."""
    from huggingface_hub import constants  # noqa: PLC0415

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def describe(name: str, revision: str | None = None) -> Published:
    """Ask the hub which files a model has.  Raises `ExportError`."""
    return _translated(name, partial(_describe, name, revision))


def fetch(name: str, revision: str | None = None) -> tuple[Path, str]:
    """Download a model into the hub's cache like `obtain`; return its folder and its commit.

    Without a connection, a cached model is verified and used.  Raises `ExportError`.
    """
    action = partial(_fetch, name, revision)
    return _translated(name, action, ", and the model is not in its cache")


def obtain(published: Published, progress: Progress = lambda done, total: None) -> Path:
    """Download a model into the hub's cache and return its folder.

    Cached files are not downloaded again, and weights are downloaded in one format only.  All files
    are verified; a file that does not match its digest is deleted.  *progress* is called with the
    received bytes of a large file and its size.  Raises `ExportError`.
    """
    return _translated(published.name, partial(_obtain_all, published, progress))


def _fetch(name: str, revision: str | None) -> tuple[Path, str]:
    try:
        published = _describe(name, revision)
    except Exception:
        # The library passes on exceptions of its HTTP client, which differs between versions.
        folder = _cached(name, revision)
        if folder is None:
            raise
        # The cache stores a snapshot in a folder with the name of its commit.
        return folder, folder.name
    return _obtain_all(published, lambda done, total: None), published.commit


def _obtain_all(published: Published, progress: Progress) -> Path:
    folder = cache_folder(published.name)
    # A complete cache may be on a disk that cannot be written to.
    complete = all(_link(published, file).exists() for file in published.files)
    if not complete:
        _check_space(folder, sum(file.size for file in published.missing))
        folder.mkdir(parents=True, exist_ok=True)
    with nullcontext() if complete else FileLock(folder / ".samserve.lock"):
        for file in published.files:
            path = _obtain(published, file, progress)
            if file.name == CONFIG:
                _check_config(published.name, path)
        _remember(folder, published.revision, published.commit)
    return path.parent


def _remember(folder: Path, revision: str, commit: str) -> None:
    """Record the commit of a branch or tag in the cache, for calls without a connection."""
    ref = folder / "refs" / revision
    # git has no revision with these parts, which would lead out of the folder.
    if revision == commit or ".." in revision or revision.startswith("/"):
        return
    if not ref.is_file() or ref.read_text(encoding="utf-8") != commit:
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit, encoding="utf-8")


def _check_config(name: str, path: Path) -> None:
    """Raise `ExportError` before the weights of a model that cannot be exported are downloaded."""
    try:
        read_config(path.parent)
    except ExportError as error:
        raise ExportError(f"{name}: {error}") from error


def _describe(name: str, revision: str | None) -> Published:
    from huggingface_hub import HfApi, constants  # noqa: PLC0415

    check_url(constants.ENDPOINT)  # before a token is sent there
    info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=10.0)
    found = {file.rfilename: file for file in info.siblings or ()}
    wanted: list[str] = []
    for patterns in (_WEIGHTS, _OLDER_WEIGHTS):
        wanted = wanted or [each for each in sorted(found) if _matches(each, patterns)]
    if CONFIG not in found or not wanted:
        lacks = CONFIG if CONFIG not in found else f"{_WEIGHTS[0]} or {_OLDER_WEIGHTS[0]}"
        raise ExportError(f"{name} on the hub is not a model of transformers: it has no {lacks}")
    if not _COMMIT.fullmatch(str(info.sha)):
        raise ExportError(f"{name}: the hub lists no commit")
    files = tuple(_file(name, found[each]) for each in [CONFIG, *wanted])
    return Published(name, revision or "main", str(info.sha), files)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return _FILE_NAME.fullmatch(name) is not None and any(
        fnmatchcase(name, pattern) for pattern in patterns
    )


def _file(name: str, found: Any) -> HubFile:
    digest = f"git-blob-sha1:{found.blob_id}" if found.lfs is None else found.lfs.sha256
    size, limit = int(found.size or 0), _limit(found.rfilename)
    if not 0 <= size <= limit:
        raise ExportError(
            f"{name}: {shown(found.rfilename)} has {size} bytes, more than the limit of {limit}"
        )
    try:
        return HubFile(found.rfilename, size, parse_checksum(str(digest)))
    except ExportError as error:
        raise ExportError(f"{name}: the hub lists no digest of {shown(found.rfilename)}") from error


def _limit(file: str) -> int:
    return MAX_JSON if file.endswith(".json") else MAX_BYTES


def _is_cached(published: Published, file: HubFile) -> bool:
    return _link(published, file).exists() or _blob(published.name, file).exists()


def _link(published: Published, file: HubFile) -> Path:
    return cache_folder(published.name) / "snapshots" / published.commit / file.name


def _blob(name: str, file: HubFile) -> Path:
    return cache_folder(name) / "blobs" / file.checksum.partition(":")[2]


def _obtain(published: Published, file: HubFile, progress: Progress) -> Path:
    """Return the path of a file in the cache; download it if it is not there."""
    link, blob = _link(published, file), _blob(published.name, file)
    if not link.exists():
        if not blob.exists():
            _download(published, file, blob, progress)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)  # it has no target
        link.symlink_to(os.path.relpath(blob, link.parent))
    _verify(link, file.checksum)
    return link


def _download(published: Published, file: HubFile, blob: Path, progress: Progress) -> None:
    """Download a file to where the cache expects it; a later call resumes it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url  # noqa: PLC0415
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # noqa: PLC0415

    url = hf_hub_url(published.name, file.name, revision=published.commit)
    headers = {
        name: value for name, value in build_hf_headers().items() if name.lower() == "authorization"
    }
    if file.name == CONFIG:
        get_hf_file_metadata(url, timeout=10.0)  # its errors say what a gated model requires
    partial_folder = cache_folder(published.name) / ".samserve" / blob.name
    limit = file.size or _limit(file.name)
    if file.name.endswith(".json"):
        progress = lambda done, total: None  # noqa: E731
    path = download(url, partial_folder, file.checksum, progress, limit, headers)
    blob.parent.mkdir(exist_ok=True)
    path.replace(blob)
    shutil.rmtree(partial_folder)


def _cached(name: str, revision: str | None) -> Path | None:
    """Return the folder of a model that is completely in the cache, verified."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        return None
    for path in folder.iterdir():
        kind = _KINDS.get(len(path.resolve().name))
        if kind and _matches(path.name, (CONFIG, *_WEIGHTS, *_OLDER_WEIGHTS)):
            _verify(path, f"{kind}:{path.resolve().name}")
    return folder


def _verify(path: Path, checksum: str) -> None:
    found = checksum_of(path, checksum.partition(":")[0])
    if found != checksum:
        target, blobs = path.resolve(), path.parents[2] / "blobs"
        if target.parent == blobs.resolve():  # never what a user has linked into the cache
            target.unlink()
        path.unlink(missing_ok=True)
        raise ExportError(
            f"{shown(path.name)} does not match the digest that the hub lists: expected "
            f"{checksum}, found {found}; it is deleted, run the command again to download it"
        )


def _check_space(folder: Path, needed: int) -> None:
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ExportError(
            f"the download needs {needed >> 20} MiB in {folder}, where {free >> 20} MiB are free"
        )


def _translated(name: str, action: Callable[[], T], not_cached: str = "") -> T:
    try:
        return action()
    except ExportError:
        raise
    except Exception as error:
        reason = _reason(name, error)
        uncached = not_cached if reason in (_UNREACHABLE, _OFFLINE) else ""
        raise NotAvailable(name, reason + uncached) from error


def _reason(name: str, error: Exception) -> str:
    from huggingface_hub import errors  # noqa: PLC0415

    token = "set HF_TOKEN to a token of your account, or run `hf auth login`"  # noqa: S105
    # Their own texts have several lines and begin with a request id.
    texts: tuple[tuple[type[Exception], str], ...] = (
        (
            errors.GatedRepoError,
            f"its owner must grant access first: accept the terms on {page(name)}, then {token}",
        ),
        (
            errors.RepositoryNotFoundError,
            f"the model does not exist or is private; for a private one, {token}",
        ),
        (errors.RevisionNotFoundError, "the revision does not exist"),
        (errors.HFValidationError, "the name is not valid"),
        (errors.OfflineModeIsEnabled, _OFFLINE),
    )
    text = next((text for kind, text in texts if isinstance(error, kind)), "")
    if text:
        return text
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return f"the hub rejects the token; {token}"
        if status < 500:
            return f"the hub responded with {status}"
    elif isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    elif isinstance(error, OSError) and error.errno in _DISK:
        return f"{cache_folder(name)}: {error.strerror}"
    is_malformed = isinstance(error, (KeyError, TypeError, ValueError))
    return "the response of the hub is not valid" if is_malformed else _UNREACHABLE
