"""Settings from the command line, with mistakes told one per line."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsError

from samserve.cli.errors import UsageError
from samserve.settings import Settings, file_of_environment, load
from samserve.settings.validation import describe, shown

Sections = Mapping[str, Mapping[str, object]]


def load_settings(
    file: Path | None, assignments: Sequence[str] | None, flags: Sections | None = None
) -> Settings:
    """Read the settings; *flags* win over *assignments* (``section.name=value``).

    Without *file*, `SAMSERVE_CONFIG` may name one.
    """
    file = file or _file_of_environment()
    overrides = _parse(assignments or ())
    for section, values in (flags or {}).items():
        overrides.setdefault(section, {}).update(values)
    try:
        return load(overrides, file)
    except ValidationError as error:
        raise UsageError(*_problems(error)) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is not valid TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8: see its byte {error.start + 1}") from error
    except RecursionError as error:
        raise UsageError(f"{file} is not valid TOML: it is nested too deeply") from error
    except SettingsError as error:
        raise UsageError(_bad_variable(error)) from error
    except OSError as error:
        raise UsageError(f"the settings cannot be read: {error}") from error


def _file_of_environment() -> Path | None:
    """Return the file that the environment names, so that commands in a container find it, too."""
    file = file_of_environment()
    if file is not None and not file.is_file():
        # pydantic takes a file that is not there for an empty one.
        raise UsageError(f"SAMSERVE_CONFIG: there is no file {file}")
    return file


def _parse(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    overrides: dict[str, dict[str, Any]] = {}
    for text in assignments:
        path, equals, value = text.partition("=")
        section, dot, name = path.partition(".")
        if not (section and dot and name and equals):
            raise UsageError(f"--set {text!r}: expected SECTION.NAME=VALUE")
        overrides.setdefault(section, {})[name] = value
    return overrides


def _bad_variable(error: SettingsError) -> str:
    """Name the variable; pydantic names a field and a class of its own."""
    field = re.search(r'field "(\w+)"', str(error))
    if field is None:
        return f"the environment cannot be read: {error}"
    name = f"SAMSERVE_{field[1].upper()}"
    return f"{name}: must be a JSON object; single settings are {name}__NAME"


def _problems(error: ValidationError) -> list[str]:
    return [line for problem in error.errors() for line in _problem(problem)]


def _problem(problem: ErrorDetails) -> list[str]:
    """Say what is wrong with a setting, or with several of a section."""
    place = [str(part) for part in problem["loc"]]
    name = ".".join(place)
    if problem["type"] == "extra_forbidden":
        return [f"there is no setting {name}: {_hint(place)}"]
    what = {0: "", 1: f"section {name}: "}.get(len(place), f"setting {name}: ")
    if problem["type"] == "value_error":
        return [f"{what}{line}" for line in describe(problem).splitlines()]
    value = shown(problem["input"])
    return [f"{what}{describe(problem)}" + (f"; got {value}" if value else "")]


def _hint(place: Sequence[str]) -> str:
    """Name what was probably meant, or where to look."""
    known = list(Settings.model_fields)
    if len(place) > 1:
        section = Settings.model_fields[place[0]].annotation
        known = [f"{place[0]}.{name}" for name in getattr(section, "model_fields", ())]
    close = difflib.get_close_matches(".".join(place), known, n=1)
    return f"did you mean {close[0]}?" if close else "see `samserve config`"
