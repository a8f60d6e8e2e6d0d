"""The options of `samserve tune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True, slots=True)
class TuneFlags:
    """The options as given on the command line."""

    model: Annotated[str, typer.Option("--model", help="Name of the model that is tuned.")]
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            file_okay=False,
            help="Model repository to write to. Default: that of `samserve export`.",
        ),
    ] = None
    name: Annotated[
        str, typer.Option("--name", help="Name of the new model. Default: MODEL_tuned.")
    ] = ""
    models: Annotated[
        Path | None,
        typer.Option("--models", metavar="DIR", file_okay=False, help="Model repository of MODEL."),
    ] = None
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            metavar="CHECKPOINT",
            help="The checkpoint from which MODEL was exported. The default model needs none.",
        ),
    ] = None
    images_folder: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Folder of the data set's image files.",
        ),
    ] = None
    held_out: Annotated[
        str,
        typer.Option(
            "--held-out",
            metavar="X|DATASET",
            help="What the model is measured on: a part of the images, or another data set.",
        ),
    ] = "0.2"
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            metavar="DATASET",
            help="Old data that is mixed in, so that the model keeps what it could do.",
        ),
    ] = None
    replay_ratio: Annotated[
        float | None,
        typer.Option(
            "--replay-ratio",
            metavar="X",
            help="Part of the images from old data, below 1. Default: 0.3.",
        ),
    ] = None
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", min=1, help="Length. Default: 1000.")
    ] = None
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", metavar="X", min=0.1, help="Length, by the first steps."),
    ] = None
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="X", help="Learning rate. Default: that of the family."),
    ] = None
    adapter_rank: Annotated[
        int,
        typer.Option(
            "--adapter-rank",
            metavar="N",
            min=0,
            help="Train adapters of this rank in the image encoder too. 0 for none.",
        ),
    ] = 0
    images: Annotated[
        int, typer.Option("--images-per-step", metavar="N", min=1, help="Images of a step.")
    ] = 2
    prompts: Annotated[
        int, typer.Option("--prompts", metavar="N", min=2, help="Prompts on each image of a step.")
    ] = 12
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0)] = 0
    device: Annotated[
        str, typer.Option("--device", metavar="cpu|cuda", help="Where the model is trained.")
    ] = "cpu"
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="DIR",
            file_okay=False,
            help="Folder of checkpoints, embeddings, report and curve. Default: NAME-run.",
        ),
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in this folder.")] = (
        False
    )
