"""`samserve export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samserve.cli.export_options import ExportFlags, run_export, to_options


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A .pth or .safetensors file, a directory of the transformers library, or "
            "OWNER/NAME on the Hugging Face hub.",
        ),
    ],
    flags: ExportFlags,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the model on the hub.")
    ] = None,
) -> None:
    """Export a checkpoint of SAM or MobileSAM to a model repository.

    Masks of the exported models are compared with those of the checkpoint in PyTorch. If their mean
    IoU is below --min-iou, the export fails and writes nothing.
    """
    options = to_options(flags, revision=revision)
    # An existing file takes precedence over a name on the hub.
    run_export(Path(checkpoint) if Path(checkpoint).exists() else checkpoint, options)
