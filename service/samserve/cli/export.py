"""`samserve export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samserve.cli.export_options import ExportFlags, options_of, run_export


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A .pth or .safetensors file, a directory of the transformers library, or "
            "OWNER/NAME on its hub.",
        ),
    ],
    flags: ExportFlags,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
) -> None:
    """Turn a checkpoint of SAM or MobileSAM into a pair of models to serve.

    Masks of the exported models are compared with those of the checkpoint's own networks; an
    export that differs by more than --min-iou allows is refused, and nothing is written.
    """
    options = options_of(flags, revision=revision)
    # A file that is there goes before a name on the hub.
    run_export(Path(checkpoint) if Path(checkpoint).exists() else checkpoint, options)
