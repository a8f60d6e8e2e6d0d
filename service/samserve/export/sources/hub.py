"""Checkpoints of the transformers library's hub."""

from __future__ import annotations

import re
from pathlib import Path

from samserve.export.errors import ExportError
from samserve.export.sources.files import shown

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_NEEDED = ("config.json", "model.safetensors", "model-*.safetensors", "*.safetensors.index.json")
_OLDER = ("config.json", "pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")


def is_hub_name(text: str) -> bool:
    """Tell whether *text* has the form ``owner/name``."""
    return _NAME.fullmatch(text) is not None


def fetch(name: str, revision: str | None = None) -> tuple[Path, str]:
    """Download a model into the hub's cache: its folder, and the commit that it is of.

    Files that are there already are not downloaded again, and weights only in one format.  Raises
    `ExportError`.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (slow, and rarely needed)

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(_NEEDED)))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(_OLDER)))
    except Exception as error:
        # The library lets through what its HTTP client raises, and changes that client.
        raise ExportError(
            f"{name}: no such file or directory, and not to be had from the hub: {_reason(error)}"
        ) from error
    # The cache keeps a snapshot in a folder named by its commit.
    return folder, folder.name


def _reason(error: Exception) -> str:
    from huggingface_hub import errors  # noqa: PLC0415

    # Their own texts are of several lines, and begin with the number of a request.
    told: tuple[tuple[type[Exception], str], ...] = (
        (errors.GatedRepoError, "its owner has to grant access first"),
        (errors.RepositoryNotFoundError, "there is no such model, or it is private"),
        (errors.RevisionNotFoundError, "it has no such revision"),
        (
            errors.LocalEntryNotFoundError,
            "it cannot be reached, and has not been downloaded before",
        ),
    )
    text = next((text for kind, text in told if isinstance(error, kind)), "")
    return text or shown(str(error).strip().partition("\n")[0]) or type(error).__name__
