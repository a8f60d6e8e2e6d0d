"""Checks of AutoMask's options that need the model or the size of the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samserve.errors import InvalidRequest, Violations
from samserve.models import families
from samserve.segmentation.prompts import check_box_inside, check_mask_size, check_selection
from samserve.types import MaskSelection, ModelInfo, Size


def check_request(overrides: Mapping[str, Any], image: Size, model: ModelInfo) -> None:
    """Raise `InvalidRequest` for what the model or the size of the image does not allow."""
    capabilities = families.of(model).capabilities
    if not capabilities.automask:
        raise InvalidRequest("model", f"{model.name!r} has no AutoMask")
    if overrides.get("use_m2m") and not capabilities.masks:
        raise InvalidRequest("options.use_m2m", f"model {model.name!r} has no mask prompts")
    check_selection(MaskSelection(hq_mode=overrides.get("hq_mode")), model, "options.hq_mode")
    region = overrides.get("region_of_interest")
    if region is not None:
        check_box_inside("options.region_of_interest", region, image)
    violations = Violations()
    for index, mask in enumerate(overrides.get("exclude", ())):
        check_mask_size(violations, f"options.exclude[{index}].size", mask.size, image)
    violations.check()
