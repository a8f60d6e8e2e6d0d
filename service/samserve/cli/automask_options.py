"""The options of AutoMask on the command line, by the names of the reference generator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from samserve.cli.errors import UsageError
from samserve.cli.options import parse_box

if TYPE_CHECKING:
    from samserve.client import AutoMaskOptions

_INT32_MAX = 2**31 - 1
_GRIDS = "expected a JSON list with one list of [x, y] in 0..1 for each layer"


def _int32(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None
    if abs(value) > _INT32_MAX:
        raise typer.BadParameter(f"{value} does not fit into 32 bits")
    return value


def _whole(help_text: str) -> Any:
    return typer.Option(metavar="N", parser=_int32, help=help_text)


def _number(help_text: str) -> Any:
    return typer.Option(metavar="X", help=help_text)


PointsPerSide = Annotated[int | None, _whole("Grid points along a side; 32.")]
PointsPerBatch = Annotated[int | None, _whole("Points decoded together; 64.")]
PredIouThresh = Annotated[float | None, _number("Least predicted IoU; 0.88.")]
StabilityScoreThresh = Annotated[float | None, _number("Least stability score; 0.95.")]
StabilityScoreOffset = Annotated[float | None, _number("Shift of its threshold; 1.")]
BoxNmsThresh = Annotated[float | None, _number("Box IoU of duplicates in a crop; 0.7.")]
CropNLayers = Annotated[int | None, _whole("Layers of crops; 0.")]
CropNmsThresh = Annotated[float | None, _number("Box IoU of duplicates over crops; 0.7.")]
CropOverlapRatio = Annotated[float | None, _number("Overlap of crops; 512/1500.")]
CropNPointsDownscaleFactor = Annotated[
    int | None, _whole("Divides the points per side with each layer; 1.")
]
MinMaskRegionArea = Annotated[
    int | None, _whole("Removes holes and islands of fewer pixels; 0 is off.")
]
PointGrids = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="JSON: for each layer a list of [x, y] in 0..1, instead of a regular grid.",
    ),
]
Region = Annotated[
    str, typer.Option("--roi", metavar="X0,Y0,X1,Y1", help="Click only inside this box.")
]
MaxMasks = Annotated[int | None, _whole("Keeps this many of highest predicted IoU; 0 is all.")]


def given_options(parameters: Mapping[str, Any]) -> AutoMaskOptions:
    """Pick the AutoMask options that were given out of the parameters of the command."""
    from samserve.client import AutoMaskOptions

    given = {
        name: parameters[name]
        for name in AutoMaskOptions.__annotations__
        if parameters.get(name) is not None
    }
    if "point_grids" in given:
        given["point_grids"] = _read_grids(given["point_grids"])
    if parameters["roi"]:
        given["region_of_interest"] = parse_box("--roi", parameters["roi"])
    return cast(AutoMaskOptions, given)


def _read_grids(path: Path) -> list[Any]:
    import numpy as np

    try:
        grids = [np.array(grid, dtype=np.float64) for grid in json.loads(path.read_bytes())]
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"--point-grids {path}: {_GRIDS}") from error
    if any(grid.ndim != 2 or grid.shape[1] != 2 for grid in grids):
        raise UsageError(f"--point-grids {path}: {_GRIDS}")
    return grids
