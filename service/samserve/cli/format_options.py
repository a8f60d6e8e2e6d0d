"""The command-line options of mask formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from samserve.cli.errors import UsageError
from samserve.cli.options import area

if TYPE_CHECKING:
    from samserve.client import PolygonOptions

FormatName = Literal["coco_rle", "uncompressed_rle", "binary_mask", "png", "polygons", "box"]


@dataclass(frozen=True, slots=True)
class FormatFlags:
    """The options as given on the command line; None for one that is not given."""

    help_panel: ClassVar[str] = "Mask format"

    mask_format: Annotated[
        FormatName,
        typer.Option(
            "--format",
            help="How --json describes masks: run lengths, bits or a PNG file in base64, polygons "
            "(an approximation, with its IoU), or the box alone.",
        ),
    ] = "coco_rle"
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Maximum distance in pixels between a mask and its polygons. Default: 1.",
        ),
    ] = None
    min_area: Annotated[
        int | None,
        area("Leave out polygons and holes of fewer pixels. Default: 0."),
    ] = None

    def polygon_options(self) -> PolygonOptions | None:
        """Return the options of polygons, None for other formats.  Raises `UsageError`."""
        from samserve.client import PolygonOptions

        given = {"--tolerance": self.tolerance, "--min-area": self.min_area}
        if self.mask_format == "polygons":
            return PolygonOptions(self.tolerance, self.min_area)
        for option, value in given.items():
            if value is not None:
                raise UsageError(f"{option} requires --format polygons")
        return None

    def check_drawable(self, out: Path | None) -> None:
        """Raise `UsageError` if *out*, the image to draw the masks on, needs more than boxes."""
        if out is not None and self.mask_format == "box":
            raise UsageError("--out draws masks: choose another --format than box")

    def check_exact(self, option: str, path: Path | None) -> None:
        """Raise `UsageError` if a file of masks is requested and the format has no exact masks."""
        if path is not None and self.mask_format in ("polygons", "box"):
            raise UsageError(f"{option} needs exact masks: choose another --format")
