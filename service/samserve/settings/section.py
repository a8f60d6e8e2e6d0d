"""Base class and types of the settings' sections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from samserve.system.addresses import parse_host, parse_target

KIB, MIB = 1 << 10, 1 << 20

Host = Annotated[str, AfterValidator(parse_host)]
"""A host name or an IP address, without brackets."""
Target = Annotated[str, AfterValidator(parse_target)]
"""A gRPC target, HOST:PORT with an IPv6 address in brackets."""


class Section(BaseModel):
    """One section: immutable, without unknown names; docstrings describe its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def conflicts(self) -> Iterator[str]:
        """Yield one text for each combination of settings that is invalid."""
        yield from ()

    @model_validator(mode="after")
    def _check_conflicts(self) -> Self:
        found = list(self.conflicts())
        if found:
            raise ValueError("\n".join(found))
        return self
