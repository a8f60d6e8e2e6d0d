"""Reading TOML into models, with mistakes named by their place and never by their value."""

from __future__ import annotations

import tomllib
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from samserve.errors import Misconfigured
from samserve.settings.validation import describe

M = TypeVar("M", bound=BaseModel)

TENANT = r"^[A-Za-z0-9][A-Za-z0-9_.@:|/+-]{0,127}$"
"""What a tenant may be called: it is a label in logs and errors."""

_TOLD = 5


class Strict(BaseModel):
    """A part of a file: unknown names are mistakes, and errors do not repeat what was written."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def read_toml(what: str, data: bytes, model: type[M]) -> M:
    """Read a file's bytes.  Raises `Misconfigured`, which names each mistake's place in *what*."""
    try:
        content = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise Misconfigured(f"{what}: is not UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise Misconfigured(f"{what}: is not valid TOML{_position(error)}") from None
    return validated(what, content, model)


def validated(what: str, content: Any, model: type[M]) -> M:
    """Fill *model* with parsed content.  Raises `Misconfigured`."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        told = [f"{_place(problem['loc'])}: {describe(problem)}" for problem in problems[:_TOLD]]
        if len(problems) > _TOLD:
            told.append(f"and {len(problems) - _TOLD} more")
        raise Misconfigured(f"{what}: {'; '.join(told)}") from None


def _place(location: tuple[int | str, ...]) -> str:
    # Names in the file may be of any length.
    return ".".join(str(part)[:64] for part in location) or "the file"


def _position(error: Exception) -> str:
    """Give the place that the parser names at the end of its text, and not the text itself."""
    _, bracket, place = str(error).rpartition("(at ")
    return f" at {place.rstrip(')')}" if bracket else ""
