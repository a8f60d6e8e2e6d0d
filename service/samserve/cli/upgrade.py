"""`samserve models upgrade`: adapts models of earlier exports to the current gateways."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samserve.cli import user_models
from samserve.cli.errors import CommandError
from samserve.cli.export_options import export_errors
from samserve.cli.terminal import write_line, write_note


def upgrade(
    repository: Annotated[
        Path | None,
        typer.Argument(
            metavar="[REPOSITORY]",
            exists=True,
            file_okay=False,
            help="Model repository to upgrade. Default: that of `samserve models pull`.",
        ),
    ] = None,
) -> None:
    """Add the digest of the image encoder to the outputs of every model.

    Current gateways reject models without a digest output; earlier gateways reject models with the
    encoder's digest. Masks and model digests stay the same; embedding ids change, so images are
    encoded again. Models that are already upgraded are skipped.
    """
    repository = repository or user_models.folder()
    if not repository.is_dir():
        raise CommandError(f"there is no folder {repository}")
    with export_errors():
        from samserve.export.upgrade import upgrade as upgrade_all

        upgraded = upgrade_all(repository, write_note)
    for model in upgraded:
        outcome = "upgraded" if model.changed else "already up to date"
        write_line(f"{model.name}: {outcome}, digest {model.digest}")
        if model.digest != model.before:
            write_line(
                f"{model.name}: its files did not match its digest, which was {model.before}"
            )
