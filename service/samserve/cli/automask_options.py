"""The command-line options of AutoMask, under the names of the reference generators."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import typer

from samserve.cli.errors import UsageError
from samserve.cli.options import HqModeName, existing_file, parse_box

if TYPE_CHECKING:
    from samserve.client import AutoMaskOptions

_INT32_MAX = 2**31 - 1
_GRIDS = "expected a JSON list with a list of [x, y] in 0..1 for each layer"


def _int32(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None
    if abs(value) > _INT32_MAX:
        raise typer.BadParameter(f"{value} does not fit in 32 bits")
    return value


def _whole(help_text: str) -> Any:
    return typer.Option(metavar="N", parser=_int32, help=help_text)


def _number(help_text: str) -> Any:
    return typer.Option(metavar="X", help=help_text)


@dataclass(frozen=True, slots=True)
class AutoMaskFlags:
    """The options as given on the command line; None or False for one that is not given."""

    help_panel: ClassVar[str] = "AutoMask"

    points_per_side: Annotated[int | None, _whole("Grid points per side. Default: 32.")] = None
    points_per_batch: Annotated[int | None, _whole("Points per decoder call. Default: 64.")] = None
    pred_iou_thresh: Annotated[
        float | None, _number("Minimum predicted IoU. Default: 0.88; SAM 2: 0.8.")
    ] = None
    stability_score_thresh: Annotated[
        float | None, _number("Minimum stability score. Default: 0.95.")
    ] = None
    stability_score_offset: Annotated[
        float | None, _number("Offset of the mask threshold. Default: 1.")
    ] = None
    box_nms_thresh: Annotated[
        float | None, _number("Box IoU of duplicates within a crop. Default: 0.7.")
    ] = None
    crop_n_layers: Annotated[int | None, _whole("Layers of crops. Default: 0.")] = None
    crop_nms_thresh: Annotated[
        float | None, _number("Box IoU of duplicates across crops. Default: 0.7.")
    ] = None
    crop_overlap_ratio: Annotated[
        float | None, _number("Overlap ratio of crops. Default: 512/1500.")
    ] = None
    crop_n_points_downscale_factor: Annotated[
        int | None, _whole("Divisor of the points per side for each further layer. Default: 1.")
    ] = None
    point_grids: Annotated[
        Path | None,
        existing_file(
            "JSON file with a list of [x, y] in 0..1 for each layer. Replaces the regular grid."
        ),
    ] = None
    min_mask_region_area: Annotated[
        int | None, _whole("Remove holes and islands with fewer pixels. Default: 0 (off).")
    ] = None
    region_of_interest: Annotated[
        str | None,
        typer.Option(
            "--roi", metavar="X0,Y0,X1,Y1", help="Only prompt grid points inside this box."
        ),
    ] = None
    max_masks: Annotated[
        int | None,
        _whole(
            "Keep only this many masks, those with the highest predicted IoU. Default: 0 (all)."
        ),
    ] = None
    no_multimask_output: Annotated[
        bool,
        typer.Option(
            "--no-multimask-output",
            help="One candidate for each point instead of the multimask outputs.",
        ),
    ] = False
    use_m2m: Annotated[
        bool,
        typer.Option("--use-m2m", help="Decode each candidate again, with its own mask as prompt."),
    ] = False
    hq_mode: HqModeName = None

    def to_options(self) -> AutoMaskOptions:
        """Return the given options, parsed.  Raises `UsageError`."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if given.pop("no_multimask_output"):
            given["multimask_output"] = False
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
