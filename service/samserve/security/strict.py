"""TOML files read into models; errors name the location of a problem and never its value."""

from __future__ import annotations

import tomllib
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from samserve.errors import Misconfigured
from samserve.settings import renames
from samserve.settings.validation import describe

M = TypeVar("M", bound=BaseModel)

TENANT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.@:|/+-]{0,127}$"
"""The form of names of tenants, which appear in logs and errors."""

_MAX_REPORTED = 5


class Strict(BaseModel):
    """Part of a file: unknown names are errors, and error texts do not contain values."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def read_toml(what: str, data: bytes, model: type[M]) -> M:
    """Parse a file's bytes.  Raises `Misconfigured` with the location of each problem in *what*."""
    try:
        content = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise Misconfigured(f"{what}: is not UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise Misconfigured(f"{what}: is not valid TOML{_position(error)}") from None
    return _validate(what, content, model)


def _validate(what: str, content: Any, model: type[M]) -> M:
    """Create *model* from parsed content.  Raises `Misconfigured`."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        texts = [
            f"{_location(problem['loc'])}: {_problem_text(problem)}"
            for problem in problems[:_MAX_REPORTED]
        ]
        if len(problems) > _MAX_REPORTED:
            texts.append(f"and {len(problems) - _MAX_REPORTED} more")
        raise Misconfigured(f"{what}: {'; '.join(texts)}") from None


def _problem_text(problem: ErrorDetails) -> str:
    location = problem["loc"]
    if problem["type"] == "extra_forbidden" and location[:1] == ("quotas",):
        new_name = renames.QUOTAS.get(str(location[-1]))
        if new_name is not None:
            return f"is now {new_name}"
    return describe(problem)


def _location(parts: tuple[int | str, ...]) -> str:
    # Names in the file may have any length.
    return ".".join(str(part)[:64] for part in parts) or "the file"


def _position(error: Exception) -> str:
    """Return the position in the parser's error, without the text, which may quote data."""
    _, bracket, position = str(error).rpartition("(at ")
    return f" at {position.rstrip(')')}" if bracket else ""
