"""What all sections of the settings share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

MIB = 1 << 20


class Section(BaseModel):
    """Part of the settings: closed, fixed, and described by what stands below each field."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
