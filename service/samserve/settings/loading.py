"""Reading of settings from command line, environment and TOML file, for each process that has any.

A process has one class of settings, whose fields are sections; its variables begin with the prefix
of the class.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

T = TypeVar("T", bound=BaseSettings)

# Longer prefixes of other processes, whose variables may be in the same environment.
_OTHER_PREFIXES = ("SAMSERVE_BRIDGE_",)


def read(
    kind: type[T],
    overrides: dict[str, Any] | None = None,
    file: Path | None = None,
    defaults: dict[str, Any] | None = None,
) -> T:
    """Read settings of *kind*; *overrides* are nested like the sections and have priority.

    *defaults* have the least priority: they replace the defaults of settings that nothing sets.

    Raises `pydantic.ValidationError`, which contains every invalid or unknown setting.
    """

    class FromFile(kind):  # type: ignore[misc, valid-type]
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            *_: Any,
            **others: Any,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            files = [] if file is None else [_File(cls, file)]
            last = InitSettingsSource(cls, defaults or {})
            return (init_settings, _Environment(settings_cls), *files, last)

    found: T = FromFile(**(overrides or {}))
    return found


def file_of_environment(kind: type[BaseSettings]) -> Path | None:
    """Return the settings file that the variable `..._CONFIG` of *kind* names, None if unset."""

    class Location(BaseSettings):
        model_config = SettingsConfigDict(env_prefix=prefix_of(kind))

        config: str = ""

    name = Location().config
    return Path(name) if name else None


def prefix_of(kind: type[BaseSettings]) -> str:
    """Return the beginning of the names of the variables, such as ``SAMSERVE_``."""
    return str(kind.model_config.get("env_prefix", ""))


def _check_sections(values: dict[str, Any], kind: type[BaseSettings]) -> dict[str, Any]:
    """Return the values of a source; raises `ValidationError` for sections that are not tables.

    Otherwise another source with values of that section would replace them without an error.
    """
    wrong = list(_not_tables(values, kind))
    if wrong:
        raise ValidationError.from_exception_data("Settings", wrong)
    return values


def _not_tables(
    values: dict[str, Any], model: type[BaseModel], path: tuple[str, ...] = ()
) -> Iterator[InitErrorDetails]:
    """Yield an error for each section of *model*, nested ones included, that is not a table."""
    for name, value in values.items():
        field, location = model.model_fields.get(name), (*path, name)
        kind = None if field is None else field.annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            continue
        if isinstance(value, dict):
            yield from _not_tables(value, kind, location)
        else:
            yield {"type": "dict_type", "loc": location, "input": value}


class _File(TomlConfigSettingsSource):
    def __call__(self) -> dict[str, Any]:
        """Read the values by section."""
        return _check_sections(super().__call__(), self.settings_cls)


class _Environment(EnvSettingsSource):
    """The environment, including variables of unknown sections, which are reported as errors.

    Other names with the same prefix, such as those that Kubernetes sets for Services, are ignored.
    """

    def __call__(self) -> dict[str, Any]:
        """Read the values by section."""
        values = super().__call__()
        for variable, value in self.env_vars.items():
            if self._is_of_another(variable.upper()):
                continue
            name = variable.lower().removeprefix(self.env_prefix.lower())
            section, nested, setting = name.partition("__")
            known = section in self.settings_cls.model_fields
            if nested and name != variable.lower() and not known:
                values.setdefault(section, {})[setting] = value
        return _check_sections(values, self.settings_cls)

    def _is_of_another(self, variable: str) -> bool:
        longer = [each for each in _OTHER_PREFIXES if len(each) > len(self.env_prefix)]
        return variable.startswith(tuple(longer))
