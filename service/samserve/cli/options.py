"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from samserve.cli.errors import UsageError


def existing_file(help_text: str, *names: str) -> Any:
    """Declare an option that takes a file which can be read."""
    return typer.Option(*names, metavar="FILE", exists=True, dir_okay=False, help=help_text)


ImageFile = Annotated[
    Path,
    typer.Argument(metavar="IMAGE", exists=True, dir_okay=False, help="JPEG, PNG or WebP file."),
]
CaFile = Annotated[Path | None, existing_file("With --server: TLS with these CAs.", "--ca")]
TokenFile = Annotated[
    Path | None,
    existing_file(
        "With --server: file with an API key or token; or set SAMSERVE_CLIENT_TOKEN.",
        "--token-file",
    ),
]
ModelName = Annotated[
    str, typer.Option("--model", help="Model to use; without it, the server's default.")
]
ConfigFile = Annotated[Path | None, existing_file("TOML file; or set SAMSERVE_CONFIG.", "--config")]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.NAME=VALUE",
        help="A setting, over environment and file; repeatable. `samserve config` lists them.",
    ),
]
Overlay = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Image to draw: .png, .jpg or .webp."),
]
JsonFile = Annotated[
    str, typer.Option("--json", metavar="FILE", help="JSON to write; `-` is standard output.")
]


def parse_numbers(option: str, text: str, form: str) -> tuple[float, ...]:
    """Read comma-separated numbers; as many as *form*, such as ``X0,Y0,X1,Y1``, has parts."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != len(form.split(",")):
        raise UsageError(f"{option} {text!r}: expected {form}, in pixels of the image")
    return numbers


def parse_box(option: str, text: str) -> tuple[float, float, float, float]:
    """Read a box, XYXY."""
    x_min, y_min, x_max, y_max = parse_numbers(option, text, "X0,Y0,X1,Y1")
    return (x_min, y_min, x_max, y_max)
