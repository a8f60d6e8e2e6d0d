"""The families of models that can be served, by the names in their configurations."""

from __future__ import annotations

from samserve.errors import EngineUnavailable
from samserve.models.families.base import Family
from samserve.models.families.sam1 import Sam1
from samserve.models.families.sam2 import Sam2
from samserve.models.families.sam_hq import SamHq
from samserve.types import ModelInfo

SAM1 = Sam1()
SAM2 = Sam2()
SAM_HQ = SamHq()
FAMILIES: dict[str, Family] = {family.name: family for family in (SAM1, SAM2, SAM_HQ)}


def of(model: ModelInfo) -> Family:
    """Return the rules of a model.  Raises `EngineUnavailable` for an unknown family."""
    if model.family not in FAMILIES:
        raise EngineUnavailable(f"model {model.name!r} has the unknown family {model.family!r}")
    return FAMILIES[model.family]
