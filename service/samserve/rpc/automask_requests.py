"""AutoMask options of a request, each with its valid range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from samserve.errors import InvalidRequest, Violations
from samserve.rpc.request_fields import HQ_MODES, box, choice, coco_rle, out_of_bounds
from samserve.segmentation.automask.options import PointGrid
from samserve.settings import LimitSettings
from samserve.types import CocoRle
from samserve.v1 import samserve_pb2 as pb

_SWITCHES: tuple[Literal["multimask_output", "use_m2m", "exclude_parts"], ...] = (
    *("multimask_output", "use_m2m", "exclude_parts"),
)


@dataclass(frozen=True, slots=True)
class _Range:
    low: float
    high: float | None
    open_above: bool = False

    def contains(self, value: float) -> bool:
        """Return whether a value is in the range; NaN never is."""
        if not value >= self.low:
            return False
        if self.high is None:
            return value != float("inf")
        return value < self.high if self.open_above else value <= self.high

    def __str__(self) -> str:
        if self.high is None:
            return f"finite and at least {self.low:g}"
        return f"from {self.low:g} to {'below ' if self.open_above else ''}{self.high:g}"


def options(message: pb.AutoMaskRequest, limits: LimitSettings) -> dict[str, Any]:
    """Read the options that a request sets, by their names in `AutoMaskOptions`.

    Crops need a request with an image as its source.
    """
    given = message.options
    violations = Violations()
    values: dict[str, Any] = {}
    for name, allowed in _ranges(limits).items():
        with violations.collect():
            values |= _scalar(given, name, allowed)
    for name in _SWITCHES:
        if given.HasField(name):
            values[name] = getattr(given, name)
    with violations.collect():
        mode = choice("options.hq_mode", given.hq_mode, HQ_MODES, pb.HqMode)
        values |= {} if mode is None else {"hq_mode": mode}
    layers = values.get("crop_n_layers", 0)
    with violations.collect():
        _check_crops(message, layers)
    with violations.collect():
        if given.point_grids:
            values["point_grids"] = _grids(given, layers + 1, limits)
    with violations.collect():
        if given.HasField("region_of_interest"):
            values["region_of_interest"] = box(
                "options.region_of_interest", given.region_of_interest
            )
    with violations.collect():
        if given.exclude:
            values["exclude"] = _excluded(given, limits.max_exclude_masks)
    violations.check()
    return values


def _check_crops(message: pb.AutoMaskRequest, layers: int) -> None:
    if layers > 0 and message.WhichOneof("source") == "embedding_id":
        text = "must be 0 with an embedding_id, because crops are encoded from the image"
        raise out_of_bounds("options.crop_n_layers", text, 0, layers)


def _ranges(limits: LimitSettings) -> dict[str, _Range]:
    unit = _Range(0, 1)
    return {
        "points_per_side": _Range(1, limits.max_points_per_side),
        "points_per_batch": _Range(1, limits.max_points_per_batch),
        "pred_iou_thresh": unit,
        "stability_score_thresh": unit,
        # Logits are float32: a larger shift has no meaning, and would overflow.
        "stability_score_offset": _Range(0, 1e6),
        "box_nms_thresh": unit,
        "crop_n_layers": _Range(0, limits.max_crop_n_layers),
        "crop_nms_thresh": unit,
        "crop_overlap_ratio": _Range(0, 1, open_above=True),
        "crop_n_points_downscale_factor": _Range(1, limits.max_points_per_side),
        "min_mask_region_area": _Range(0, None),
        "max_masks": _Range(0, None),
        "exclude_iou_thresh": unit,
    }


def _scalar(given: pb.AutoMaskOptions, name: str, allowed: _Range) -> dict[str, Any]:
    """Return the value of an option under its name; nothing if it is not set."""
    if not given.HasField(name):  # type: ignore[arg-type]  # names come from the table
        return {}
    value = getattr(given, name)
    if not allowed.contains(value):
        raise out_of_bounds(f"options.{name}", f"must be {allowed}", allowed, f"{value:g}")
    return {name: value}


def _excluded(given: pb.AutoMaskOptions, max_masks: int) -> tuple[CocoRle, ...]:
    count = len(given.exclude)
    if count > max_masks:
        text = f"must have at most {max_masks} entries"
        raise out_of_bounds("options.exclude", text, max_masks, count)
    violations = Violations()
    masks: list[CocoRle] = []
    for index, mask in enumerate(given.exclude):
        with violations.collect():
            masks.append(coco_rle(f"options.exclude[{index}]", mask))
    violations.check()
    return tuple(masks)


def _grids(given: pb.AutoMaskOptions, layers: int, limits: LimitSettings) -> tuple[PointGrid, ...]:
    if given.HasField("points_per_side"):
        raise InvalidRequest(
            "options.point_grids", "set either points_per_side or point_grids, not both"
        )
    if len(given.point_grids) != layers:
        text = f"must have one grid for each of {layers} layers"
        raise out_of_bounds("options.point_grids", text, layers, len(given.point_grids))
    max_points = limits.max_points_per_side**2
    violations = Violations()
    grids: list[PointGrid] = []
    for index, grid in enumerate(given.point_grids):
        with violations.collect():
            grids.append(_grid(f"options.point_grids[{index}]", grid, max_points))
    violations.check()
    return tuple(grids)


def _grid(field: str, grid: pb.PointGrid, max_points: int) -> PointGrid:
    count = len(grid.points)
    if not 1 <= count <= max_points:
        text = f"must have from 1 to {max_points} entries"
        raise out_of_bounds(f"{field}.points", text, max_points, count)
    points = np.array([(point.x, point.y) for point in grid.points], dtype=np.float64)
    # NaN counts as outside.
    outside = np.flatnonzero(~((points >= 0) & (points <= 1)).all(axis=1))
    if len(outside):
        index = int(outside[0])
        raise InvalidRequest(
            f"{field}.points[{index}]",
            f"must be from 0 to 1; got ({points[index, 0]:g}, {points[index, 1]:g})",
            metadata={"limit": "1"},
        )
    return points
