"""Settings from the command line, with one line for each error."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsError

from samserve.cli.errors import UsageError
from samserve.settings import Settings, renames
from samserve.settings.loading import file_of_environment, prefix_of, read
from samserve.settings.validation import describe, short_repr

Sections = Mapping[str, Mapping[str, object]]
_S = TypeVar("_S", bound=BaseSettings)


def load_settings(
    file: Path | None,
    assignments: Sequence[str] | None,
    flags: Sections | None = None,
    defaults: Sections | None = None,
) -> Settings:
    """Load the settings of the server; see `load_settings_of`."""
    return load_settings_of(Settings, file, assignments, flags, defaults)


def load_settings_of(
    kind: type[_S],
    file: Path | None,
    assignments: Sequence[str] | None,
    flags: Sections | None = None,
    defaults: Sections | None = None,
) -> _S:
    """Load settings of *kind*; *flags* override *assignments* (``section.name=value``).

    *defaults* apply to what is set nowhere else.  Without *file*, the file that the environment
    names, such as `SAMSERVE_CONFIG`, is read.  Raises `UsageError`.
    """
    file = file or _file_of_environment(kind)
    overrides = _parse(assignments or ())
    for section, values in (flags or {}).items():
        overrides.setdefault(section, {}).update(values)
    try:
        least = {name: {**each} for name, each in (defaults or {}).items()}
        return read(kind, overrides, file, least)
    except ValidationError as error:
        raise UsageError(*_problems(error, kind)) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is not valid TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{file} is not UTF-8: invalid byte at position {error.start + 1}"
        ) from error
    except RecursionError as error:
        raise UsageError(f"{file} is not valid TOML: it is nested too deeply") from error
    except SettingsError as error:
        raise UsageError(_bad_variable(error, kind)) from error
    except OSError as error:
        raise UsageError(f"the settings cannot be read: {error}") from error


def _file_of_environment(kind: type[BaseSettings]) -> Path | None:
    """Return the file that the environment names, so that commands in a container use it too."""
    file = file_of_environment(kind)
    if file is not None and not file.is_file():
        # pydantic treats a missing file as an empty one.
        raise UsageError(f"{prefix_of(kind)}CONFIG: there is no file {file}")
    return file


def _parse(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    overrides: dict[str, dict[str, Any]] = {}
    for text in assignments:
        path, equals, value = text.partition("=")
        *sections, name = path.split(".")
        if not (sections and all(sections) and name and equals):
            raise UsageError(f"--set {text!r}: expected SECTION.NAME=VALUE")
        target: Any = overrides
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UsageError(f"--set {text!r}: {section} is both a setting and a section")
        target[name] = value
    return overrides


def _bad_variable(error: SettingsError, kind: type[BaseSettings]) -> str:
    """Return an error with the name of the variable; pydantic names the field of its section."""
    field = re.search(r'field "(\w+)"', str(error))
    if field is None:
        return f"the environment cannot be read: {error}"
    sections = [each for each in _section_names(kind) if each.split(".")[0] == field[1]]
    names = [f"{prefix_of(kind)}{each.replace('.', '__').upper()}" for each in sections]
    return f"{' or '.join(names)}: must be a JSON object; single settings are {names[-1]}__NAME"


def _problems(error: ValidationError, kind: type[BaseSettings]) -> list[str]:
    return [line for problem in error.errors() for line in _problem(problem, kind)]


def _problem(problem: ErrorDetails, settings: type[BaseSettings]) -> list[str]:
    """Describe an invalid setting, or each invalid setting of a section."""
    path = [str(part) for part in problem["loc"]]
    name = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return [
            f"unknown setting {each}: {_hint(each, settings)}"
            for each in _unknown(name, problem["input"])
        ]
    kind = "section" if name in _section_names(settings) else "setting"
    subject = f"{kind} {name}: " if path else ""
    if problem["type"] == "value_error":
        return [f"{subject}{line}" for line in describe(problem).splitlines()]
    value = short_repr(problem["input"])
    return [f"{subject}{describe(problem)}" + (f"; got {value}" if value else "")]


def _unknown(name: str, value: object) -> list[str]:
    """Return the name of the setting, or the names of all settings of an unknown section."""
    if "." in name or not isinstance(value, dict):
        return [name]
    return [f"{name}.{each}" for each in value]


def _hint(name: str, kind: type[BaseSettings]) -> str:
    """Return the new name, the closest name, or the command that lists all settings."""
    if kind is Settings and name in renames.SETTINGS:
        return f"it is now {renames.SETTINGS[name]}"
    close = difflib.get_close_matches(name, list(_names(kind)), n=1)
    command = "samserve config" if kind is Settings else "samserve config --bridge"
    return f"did you mean {close[0]}?" if close else f"see `{command}`"


def _names(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the names of all settings and nested sections."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        yield f"{prefix}{name}"
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _names(kind, f"{prefix}{name}.")


def _section_names(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the names of all sections, nested ones included."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield f"{prefix}{name}"
            yield from _section_names(kind, f"{prefix}{name}.")
