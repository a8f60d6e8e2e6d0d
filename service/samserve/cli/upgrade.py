"""`samserve models upgrade`: models of an earlier export, for the gateways of today."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samserve.cli.export_options import export_errors
from samserve.cli.terminal import note, say


def upgrade(
    repository: Annotated[
        Path,
        typer.Argument(
            metavar="REPOSITORY", exists=True, file_okay=False, help="Model repository to change."
        ),
    ],
) -> None:
    """Have every model say with its answers which image encoder they belong to.

    Gateways refuse models that say no weights; earlier ones refuse those that say the encoder.
    Masks and digests stay the same; ids of embeddings change, and images are encoded once more.
    What has been done already is not done again.
    """
    with export_errors():
        from samserve.export.upgrade import upgrade as upgrade_all

        upgraded = upgrade_all(repository, note)
    for model in upgraded:
        done = "upgraded" if model.changed else "nothing to do"
        say(f"{model.name}: {done}, digest {model.digest}")
        if model.digest != model.before:
            say(f"{model.name}: its files were not those of its digest, which was {model.before}")
