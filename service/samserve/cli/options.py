"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from samserve.cli.errors import UsageError

_INT32_MAX = 2**31 - 1


def existing_file(help_text: str, *names: str) -> Any:
    """Declare an option for an existing file."""
    return typer.Option(*names, metavar="FILE", exists=True, dir_okay=False, help=help_text)


def area(help_text: str) -> Any:
    """Declare an option for a number of pixels."""
    return typer.Option(metavar="N", min=0, max=_INT32_MAX, show_default=False, help=help_text)


_IMAGE_HELP = (
    "JPEG, PNG or WebP; other formats, such as TIFF, BMP, GIF and AVIF, are converted to PNG. "
    "`-` reads standard input."
)
# `inputs.find` checks that they exist: typer's check rejects `-`.
ImageFile = Annotated[Path, typer.Argument(metavar="IMAGE", help=_IMAGE_HELP)]
_images = typer.Argument(
    metavar="IMAGE", show_default=False, help=f"{_IMAGE_HELP} Or a directory of images."
)
ImageFiles = Annotated[list[Path], _images]
OptionalImageFiles = Annotated[list[Path] | None, _images]
Recursive = Annotated[
    bool,
    typer.Option(
        "--recursive", help="Include subdirectories; links to directories are not followed."
    ),
]
CaFile = Annotated[
    Path | None,
    existing_file(
        "File with the CAs that verify the server's certificate; enables TLS. Requires --server.",
        "--ca",
    ),
]
TokenFile = Annotated[
    Path | None,
    existing_file(
        "File with an API key or token. Requires --server. Or set SAMSERVE_CLIENT_TOKEN.",
        "--token-file",
    ),
]
ModelName = Annotated[
    str, typer.Option("--model", help="Name of the model. Default: the server's default model.")
]
HqModeName = Annotated[
    Literal["added", "only", "off"] | None,
    typer.Option(
        "--hq-mode",
        help="Use of SAM-HQ's mask: added to the plain mask, in its place, or off. Default: added.",
    ),
]
ConfigFile = Annotated[
    Path | None, existing_file("Settings file (TOML). Or set SAMSERVE_CONFIG.", "--config")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.NAME=VALUE",
        help="Override a setting of environment or file; repeatable. `samserve config` lists all.",
    ),
]
Overlay = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Write the image with the masks drawn on it: .png, .jpg or .webp.",
    ),
]
JsonLinesFile = Annotated[
    str,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write JSON, one line for each image; `-` is standard output, the default for "
        "several images.",
    ),
]
JsonFile = Annotated[
    str,
    typer.Option(
        "--json", metavar="FILE", help="Write the result as JSON; `-` is standard output."
    ),
]


def parse_numbers(option: str, text: str, form: str) -> tuple[float, ...]:
    """Parse comma-separated numbers, as many as *form*, such as ``X0,Y0,X1,Y1``, has parts.

    Raises `UsageError`.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != len(form.split(",")):
        raise UsageError(f"{option} {text!r}: expected {form}, in pixels of the image")
    return numbers


def parse_box(option: str, text: str) -> tuple[float, float, float, float]:
    """Parse a box, XYXY.  Raises `UsageError`."""
    x_min, y_min, x_max, y_max = parse_numbers(option, text, "X0,Y0,X1,Y1")
    return (x_min, y_min, x_max, y_max)
