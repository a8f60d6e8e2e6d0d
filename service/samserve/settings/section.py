"""What all sections of the settings share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from samserve.system.addresses import parse_host, parse_target

KIB, MIB = 1 << 10, 1 << 20

Host = Annotated[str, AfterValidator(parse_host)]
"""The name or the address of a machine, without brackets."""
Target = Annotated[str, AfterValidator(parse_target)]
"""What a gRPC client connects to, with an IPv6 address in brackets."""


class Section(BaseModel):
    """Part of the settings: closed, fixed, and described by what stands below each field."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def conflicts(self) -> Iterator[str]:
        """Name, one by one, the settings that make no sense together."""
        yield from ()

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        found = list(self.conflicts())
        if found:
            raise ValueError("\n".join(found))
        return self
