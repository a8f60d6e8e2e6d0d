"""Validation of what a request wants of its masks: the options of formats, and changes of masks."""

from __future__ import annotations

from samserve.core.regions import MaskChanges
from samserve.errors import InvalidRequest, Violations
from samserve.rpc.request_fields import out_of_bounds
from samserve.types import MaskFormat, PolygonOptions
from samserve.v1 import samserve_pb2 as pb

_MAX_TOLERANCE = 1000


def polygon_options(
    request: pb.PredictRequest | pb.AutoMaskRequest, mask_format: MaskFormat | None
) -> PolygonOptions:
    """Read the options of polygons, which other formats do not have."""
    defaults = PolygonOptions()
    if not request.HasField("polygon_options"):
        return defaults
    if mask_format is not MaskFormat.POLYGONS:
        raise InvalidRequest("polygon_options", "set it with OUTPUT_MODE_POLYGONS only")
    given = request.polygon_options
    violations = Violations()
    tolerance = given.tolerance if given.HasField("tolerance") else defaults.tolerance
    # NaN is not in any range.
    if not 0 <= tolerance <= _MAX_TOLERANCE:
        text = f"must be from 0 to {_MAX_TOLERANCE}"
        field = "polygon_options.tolerance"
        violations.add(out_of_bounds(field, text, _MAX_TOLERANCE, f"{tolerance:g}"))
    with violations.collect():
        _area("polygon_options.min_area", given.min_area)
    violations.check()
    return PolygonOptions(tolerance, given.min_area)


def mask_changes(
    request: pb.PredictRequest, mask_format: MaskFormat | None, max_prompts: int
) -> MaskChanges:
    """Read the changes of masks; they need pixels, and clipping needs a box in every prompt."""
    violations = Violations()
    for name in ("min_island_area", "min_hole_area"):
        with violations.collect():
            _area(name, getattr(request, name))
    changes = MaskChanges(request.clip_to_box, request.min_hole_area, request.min_island_area)
    if mask_format is None:
        for name in ("min_island_area", "min_hole_area", "clip_to_box"):
            if getattr(request, name):
                text = "must not be set with OUTPUT_MODE_LOW_RES_LOGITS, which has no pixels"
                violations.add(InvalidRequest(name, text))
    for index, prompt in enumerate(request.prompts[:max_prompts] if changes.clip_to_box else ()):
        if not prompt.HasField("box"):
            violations.add(InvalidRequest(f"prompts[{index}].box", "is required by clip_to_box"))
    violations.check()
    return changes


def _area(field: str, value: int) -> None:
    if value < 0:
        raise out_of_bounds(field, "must be at least 0", 0, value)
