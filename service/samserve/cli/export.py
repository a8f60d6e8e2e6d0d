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
    key: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            help="Key of the weights in a file with other content, such as ema or state.model.",
        ),
    ] = "",
    prefix: Annotated[
        str,
        typer.Option(
            metavar="PREFIX",
            help="Use only the tensors whose names begin with this, and remove it.",
        ),
    ] = "",
) -> None:
    """Export a checkpoint to a model repository.

    Checkpoints of SAM, MobileSAM, SAM-HQ, SAM 2, SAM 2.1 and EdgeTAM can be exported, also
    fine-tuned ones.

    Masks of the exported models are compared with those of the checkpoint in PyTorch. If their mean
    IoU is below --min-iou, the export fails and writes nothing.
    """
    options = to_options(flags, revision=revision, key=key, prefix=prefix)
    # An existing file takes precedence over a name on the hub.
    run_export(Path(checkpoint) if Path(checkpoint).exists() else checkpoint, options)
