"""`samserve export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samserve.cli.export_options import (
    CpuCores,
    ExportFlags,
    Gpus,
    MinIou,
    Name,
    NoCheck,
    Pictures,
    PrecisionName,
    Repository,
    TensorRtPrecision,
    options_of,
    run_export,
)


def export(  # noqa: PLR0913, PLR0917  (options, by name)
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A .pth or .safetensors file, a directory of the transformers library, or "
            "OWNER/NAME on its hub.",
        ),
    ],
    repository: Repository,
    name: Name = "",
    precision: PrecisionName = "fp32",
    pictures: Pictures = None,
    min_iou: MinIou = None,
    no_check: NoCheck = False,
    tensorrt: TensorRtPrecision = "",
    gpus: Gpus = "",
    cpu_cores: CpuCores = 0,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
) -> None:
    """Turn a checkpoint of SAM or MobileSAM into a pair of models to serve.

    Masks of the exported models are compared with those of the checkpoint's own networks; an
    export that differs by more than --min-iou allows is refused, and nothing is written.
    """
    flags = ExportFlags(
        repository, name, precision, pictures, min_iou, no_check, tensorrt, gpus, cpu_cores
    )
    options = options_of(flags, revision=revision)
    # A file that is there goes before a name on the hub.
    run_export(Path(checkpoint) if Path(checkpoint).exists() else checkpoint, options)
