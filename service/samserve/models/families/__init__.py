"""The families of models that can be served, by the names in their configurations."""

from __future__ import annotations

from samserve.errors import EngineUnavailable
from samserve.models.families.base import Family
from samserve.models.families.sam1 import Sam1
from samserve.types import ModelInfo

SAM1 = Sam1()
FAMILIES: dict[str, Family] = {SAM1.name: SAM1}


def of(model: ModelInfo) -> Family:
    """Return the rules of a model.  Raises `EngineUnavailable` for an unknown family."""
    if model.family not in FAMILIES:
        raise EngineUnavailable(f"model {model.name!r} has the unknown family {model.family!r}")
    return FAMILIES[model.family]
