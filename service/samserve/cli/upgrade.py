"""`samserve models upgrade`: models of an earlier export, for the gateways of today."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samserve.cli.errors import CommandError
from samserve.cli.export_options import export_installed
from samserve.cli.terminal import note, say


def upgrade(
    repository: Annotated[
        Path,
        typer.Argument(
            metavar="REPOSITORY", exists=True, file_okay=False, help="Model repository to change."
        ),
    ],
) -> None:
    """Have every model say with its answers which weights have made them.

    Gateways refuse models that do not. Masks, digests and ids of embeddings stay the same. What
    has been done already is not done again.
    """
    with export_installed():
        from samserve.export.errors import ExportError
        from samserve.export.upgrade import upgrade as upgrade_all

    try:
        upgraded = upgrade_all(repository, note)
    except ExportError as error:
        raise CommandError(str(error)) from error
    for model in upgraded:
        done = "upgraded" if model.changed else "nothing to do"
        say(f"{model.name}: {done}, digest {model.digest}")
        if model.digest != model.before:
            say(f"{model.name}: its files were not those of its digest, which was {model.before}")
