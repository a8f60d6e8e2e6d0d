"""`samserve dataset`: converting, checking and viewing data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from samserve.cli.command import Commands
from samserve.cli.options import existing_file
from samserve.cli.terminal import write_line

dataset = Commands()

_READ = "sa1b, coco, coco-results, yolo, label-studio or cvat"
DataSetPath = Annotated[
    Path,
    typer.Argument(
        metavar="DATASET",
        help="Output of `samserve annotate`, folder of SA-1B records, COCO file, YOLO folder, "
        "tasks of Label Studio, or export of CVAT.",
    ),
]
FromFormat = Annotated[
    str,
    typer.Option(
        "--from", metavar="FORMAT", help=f"Format of DATASET, instead of finding it: {_READ}."
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(
        "--images",
        metavar="DIR",
        exists=True,
        help="Folder of the image files; for coco-results, the COCO file with the images. Default: "
        "where DATASET says that they are.",
    ),
]


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What is written, and how."""

    to: Annotated[
        Literal["sa1b", "coco", "yolo", "label-studio", "cvat"],
        typer.Option("--to", help="Format to write."),
    ]
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FILE",
            help="File or folder to write, see the documentation of the format; it must not exist.",
        ),
    ]
    segmentation: Annotated[
        Literal["rle", "polygons"] | None,
        typer.Option(
            help="Write pixels as run lengths, which are exact, or polygons. Default: as they are, "
            "if the format holds both."
        ),
    ] = None
    tolerance: Annotated[
        float,
        typer.Option(
            metavar="X",
            min=0,
            max=1000,
            help="Maximum distance in pixels between a mask and its polygons; with 0, filled "
            "polygons are the same mask.",
        ),
    ] = 0.0


@dataclass(frozen=True, slots=True)
class LabelStudioOptions:
    """What tasks of Label Studio also need."""

    image_url_prefix: Annotated[
        str,
        typer.Option(
            "--image-url-prefix",
            metavar="URL",
            help="For label-studio: what is before an image's name in the URL of its task.",
        ),
    ] = ""
    label_config: Annotated[
        Path | None,
        existing_file("For label-studio: the label config of the project.", "--label-config"),
    ] = None
    model_version: Annotated[
        str,
        typer.Option("--model-version", help="For label-studio: the version of the predictions."),
    ] = ""


@dataset.callback(invoke_without_command=True)
def show_help(context: typer.Context) -> None:
    """Convert, check and view data sets of masks."""
    if context.invoked_subcommand is None:
        write_line(context.get_help())


@dataset.command()
def convert(
    path: DataSetPath,
    *,
    output: OutputOptions,
    source_format: FromFormat = "",
    images: Images = None,
    label_studio: LabelStudioOptions,
) -> None:
    """Convert a data set to another format.

    Prints how many annotations have something that the format does not hold. Images are read and
    written one at a time; --out is written whole or not at all.
    """
    from samserve.cli.dataset import convert
    from samserve.datasets.formats import SegmentationKind, WriteOptions

    kind = SegmentationKind(output.segmentation) if output.segmentation else None
    options = WriteOptions(
        segmentation=kind,
        tolerance=output.tolerance,
        images=images,
        image_url_prefix=label_studio.image_url_prefix,
        label_config=label_studio.label_config,
        model_version=label_studio.model_version,
    )
    convert.run(convert.Source(path, source_format, images), output.to, output.out, options)


@dataset.command()
def check(
    path: DataSetPath,
    *,
    source_format: FromFormat = "",
    images: Images = None,
    as_json: Annotated[
        str,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write all findings as JSON Lines; `-` is standard output.",
        ),
    ] = "",
) -> None:
    """Find what is wrong in a data set: one line for each finding, and their numbers.

    Sizes, bounds, ids, categories, empty masks, and masks with the same pixels; with the image
    files, also missing images and records, and sizes that differ from those of the files as
    displayed, after their EXIF orientation. Exit code 3 if something is found.
    """
    from samserve.cli.dataset import check
    from samserve.cli.dataset.convert import Source

    check.run(Source(path, source_format, images), as_json)


@dataset.command()
def show(
    path: DataSetPath,
    *,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", help="Image file to write: PNG, JPEG or WebP."),
    ],
    source_format: FromFormat = "",
    images: Images = None,
    columns: Annotated[int, typer.Option(min=1, max=20, metavar="N", help="Images in a row.")] = 4,
    limit: Annotated[
        int, typer.Option(min=1, max=400, metavar="N", help="Images in all: the first ones.")
    ] = 24,
) -> None:
    """Draw the first images of a data set with their masks, on one contact sheet."""
    from samserve.cli.dataset import show
    from samserve.cli.dataset.convert import Source

    show.run(Source(path, source_format, images), out, columns=columns, limit=limit)
