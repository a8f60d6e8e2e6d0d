"""Settings from the command line, with mistakes told one per line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsError

from samserve.cli.errors import UsageError
from samserve.settings import Settings, load

Sections = Mapping[str, Mapping[str, object]]


def load_settings(
    file: Path | None, assignments: Sequence[str] | None, flags: Sections | None = None
) -> Settings:
    """Read the settings; *flags* win over *assignments* (``section.name=value``)."""
    overrides = _parse(assignments or ())
    for section, values in (flags or {}).items():
        overrides.setdefault(section, {}).update(values)
    try:
        return load(overrides, file)
    except ValidationError as error:
        raise UsageError(*_problems(error)) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is not valid TOML: {error}") from error
    except (SettingsError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the settings cannot be read: {error}") from error


def _parse(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    overrides: dict[str, dict[str, Any]] = {}
    for text in assignments:
        path, equals, value = text.partition("=")
        section, dot, name = path.partition(".")
        if not (section and dot and name and equals):
            raise UsageError(f"--set {text!r}: expected SECTION.NAME=VALUE")
        overrides.setdefault(section, {})[name] = value
    return overrides


def _problems(error: ValidationError) -> list[str]:
    return [_problem(problem) for problem in error.errors()]


def _problem(problem: ErrorDetails) -> str:
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"there is no setting {name}: see `samserve config`"
    value = problem["input"]
    got = f"; got {value!r}" if isinstance(value, str | int | float) else ""
    return f"setting {name}: {problem['msg']}{got}"
