"""Checkpoints of the transformers library's hub."""

from __future__ import annotations

import re
from pathlib import Path

from samserve.export.errors import ExportError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NEEDED = ("config.json", "*.safetensors", "*.safetensors.index.json")
_OLDER = ("config.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")


def is_hub_name(text: str) -> bool:
    """Tell whether *text* has the form ``owner/name``."""
    return _NAME.fullmatch(text) is not None


def fetch(name: str, revision: str | None = None) -> tuple[Path, str]:
    """Download a model into the hub's cache: its folder, and the commit that it is of.

    Files that are there already are not downloaded again.  Raises `ExportError`.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (slow, and rarely needed)
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(_NEEDED)))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(_OLDER)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ExportError(f"{name} cannot be had from the hub: {reason}") from error
    # The cache keeps a snapshot in a folder named by its commit.
    return folder, folder.name
