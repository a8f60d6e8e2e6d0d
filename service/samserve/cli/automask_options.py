"""The options of AutoMask on the command line, by the names of the reference generator."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from samserve.cli.errors import UsageError
from samserve.cli.options import existing_file, parse_box

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


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """The options of a search; None are those that were not given."""

    points_per_side: Annotated[int | None, _whole("Grid points along a side; 32.")] = None
    points_per_batch: Annotated[int | None, _whole("Points decoded together; 64.")] = None
    pred_iou_thresh: Annotated[float | None, _number("Least predicted IoU; 0.88.")] = None
    stability_score_thresh: Annotated[float | None, _number("Least stability score; 0.95.")] = None
    stability_score_offset: Annotated[float | None, _number("Shift of its threshold; 1.")] = None
    box_nms_thresh: Annotated[float | None, _number("Box IoU of duplicates in a crop; 0.7.")] = None
    crop_n_layers: Annotated[int | None, _whole("Layers of crops; 0.")] = None
    crop_nms_thresh: Annotated[float | None, _number("Box IoU of duplicates over crops; 0.7.")] = (
        None
    )
    crop_overlap_ratio: Annotated[float | None, _number("Overlap of crops; 512/1500.")] = None
    crop_n_points_downscale_factor: Annotated[
        int | None, _whole("Divides the points per side with each layer; 1.")
    ] = None
    point_grids: Annotated[
        Path | None,
        existing_file("JSON: for each layer a list of [x, y] in 0..1, instead of a regular grid."),
    ] = None
    min_mask_region_area: Annotated[
        int | None, _whole("Removes holes and islands of fewer pixels; 0 is off.")
    ] = None
    region_of_interest: Annotated[
        str | None,
        typer.Option("--roi", metavar="X0,Y0,X1,Y1", help="Click only inside this box."),
    ] = None
    max_masks: Annotated[
        int | None, _whole("Keeps this many of highest predicted IoU; 0 is all.")
    ] = None

    def given(self) -> AutoMaskOptions:
        """Return those that were given, read.  Raises `UsageError`."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if self.point_grids is not None:
            given["point_grids"] = _read_grids(self.point_grids)
        if self.region_of_interest:
            given["region_of_interest"] = parse_box("--roi", self.region_of_interest)
        return cast("AutoMaskOptions", given)


def _read_grids(path: Path) -> list[Any]:
    import numpy as np

    try:
        grids = [np.array(grid, dtype=np.float64) for grid in json.loads(path.read_bytes())]
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"--point-grids {path}: {_GRIDS}") from error
    if any(grid.ndim != 2 or grid.shape[1] != 2 for grid in grids):
        raise UsageError(f"--point-grids {path}: {_GRIDS}")
    return grids
