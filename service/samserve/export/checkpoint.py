"""Opening a checkpoint of any family, in any of its published formats."""

from __future__ import annotations

from pathlib import Path

from samserve.export.families import load
from samserve.export.families.base import Network
from samserve.export.sources.source import EVERYTHING, Selection, Source, open_source


def open_network(
    spec: str | Path, revision: str | None = None, selection: Selection = EVERYTHING
) -> tuple[Network, Source]:
    """Load the networks that *spec* names, and return them with their source.

    *spec* is a file, a directory of the transformers library, or a name on the Hugging Face hub, at
    *revision*; *selection* is the part of its tensors that is used.  Weights are converted to
    float32.  Raises `ExportError`.
    """
    checkpoint, source = open_source(spec, revision, selection)
    return load(checkpoint), source
