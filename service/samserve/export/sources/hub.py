"""Checkpoints on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from samserve.export.errors import ExportError
from samserve.export.sources.files import shown

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_NEEDED = ("config.json", "model.safetensors", "model-*.safetensors", "*.safetensors.index.json")
_OLDER = ("config.json", "pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")


def is_hub_name(text: str) -> bool:
    """Return whether *text* has the form ``owner/name``."""
    return _NAME.fullmatch(text) is not None


def fetch(name: str, revision: str | None = None) -> tuple[Path, str]:
    """Download a model into the hub's cache; return its folder and its commit.

    Cached files are not downloaded again, and weights are downloaded in one format only.  Raises
    `ExportError`.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (slow, and rarely needed)

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(_NEEDED)))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(_OLDER)))
    except Exception as error:
        # The library passes on exceptions of its HTTP client, which differs between versions.
        raise ExportError(
            f"{name}: no such file or directory, and not available from the hub: {_reason(error)}"
        ) from error
    # The cache stores a snapshot in a folder with the name of its commit.
    return folder, folder.name


def _reason(error: Exception) -> str:
    from huggingface_hub import errors  # noqa: PLC0415

    # Their own texts have several lines and begin with a request id.
    texts: tuple[tuple[type[Exception], str], ...] = (
        (errors.GatedRepoError, "its owner must grant access first"),
        (errors.RepositoryNotFoundError, "the model does not exist or is private"),
        (errors.RevisionNotFoundError, "the revision does not exist"),
        (
            errors.LocalEntryNotFoundError,
            "the hub is unreachable, and the model is not in its cache",
        ),
    )
    text = next((text for kind, text in texts if isinstance(error, kind)), "")
    return text or shown(str(error).strip().partition("\n")[0]) or type(error).__name__
