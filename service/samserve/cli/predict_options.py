"""The command-line options of `samserve predict`, by groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samserve.cli.errors import UsageError
from samserve.cli.options import (
    JsonLinesFile,
    area,
    existing_file,
    parse_box,
    parse_numbers,
)

if TYPE_CHECKING:
    from samserve.client import Prompt


@dataclass(frozen=True, slots=True)
class PromptFlags:
    """The prompts as given on the command line."""

    points: Annotated[
        list[str] | None,
        typer.Option(
            "--point",
            metavar="X,Y[,0|1]",
            help="Point prompt: 1 (default) on the object, 0 off it; repeatable.",
        ),
    ] = None
    boxes: Annotated[
        list[str] | None,
        typer.Option("--box", metavar="X0,Y0,X1,Y1", help="Box around an object; repeatable."),
    ] = None
    mask: Annotated[
        Path | None,
        existing_file(
            "Mask prompt to refine: a file of --logits-out or --mask-out, or another JPEG, PNG, "
            "WebP or .npy file. Black and transparent pixels, or zeros, are outside the mask; "
            "floats are logits."
        ),
    ] = None

    def to_prompts(self) -> list[Prompt]:
        """Return one prompt, or one for each box if there are several.  Raises `UsageError`."""
        from samserve.cli.files import read_mask
        from samserve.client import Prompt

        points, boxes = self.points or [], self.boxes or []
        if not (points or boxes or self.mask):
            raise UsageError("no prompt: pass --point, --box or --mask")
        if len(boxes) > 1 and (points or self.mask):
            raise UsageError(
                "several --box describe several objects: --point and --mask require a single --box"
            )
        corners = [parse_box("--box", text) for text in boxes]
        if len(corners) > 1:
            return [Prompt(box=box) for box in corners]
        return [
            Prompt(
                points=[_point(text) for text in points],
                box=corners[0] if corners else None,
                mask=None if self.mask is None else read_mask(self.mask),
            )
        ]


@dataclass(frozen=True, slots=True)
class CleanupFlags:
    """The changes to masks, under the names of the client's options."""

    min_island_area: Annotated[
        int, area("Remove separate parts of a mask of fewer pixels. Default: 0 (off).")
    ] = 0
    min_hole_area: Annotated[int, area("Fill holes of fewer pixels. Default: 0 (off).")] = 0
    clip_to_box: Annotated[
        bool, typer.Option("--clip-to-box", help="Remove pixels outside of the prompt's box.")
    ] = False


@dataclass(frozen=True, slots=True)
class OutputFlags:
    """The files to write: directories for several images, with a file for each."""

    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the image with the masks drawn on it: .png, .jpg or .webp. "
            "For several images: a directory.",
        ),
    ] = None
    mask_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the mask: .png (white inside) or .npy (bool). Several masks are files of "
            "their own, NAME-PROMPT-TOKEN. For several images: a directory.",
        ),
    ] = None
    logits_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the low-resolution logits, for --mask of the next command: .npy (float32). "
            "Several masks and several images: as --mask-out.",
        ),
    ] = None
    as_json: JsonLinesFile = ""


def _point(text: str) -> tuple[float, float, int]:
    if text.count(",") != 2:
        x, y = parse_numbers("--point", text, "X,Y")
        return (x, y, 1)
    x, y, label = parse_numbers("--point", text, "X,Y,LABEL")
    if label not in (0, 1):
        raise UsageError(f"--point {text!r}: the label must be 1 (on the object) or 0 (off it)")
    return (x, y, int(label))
