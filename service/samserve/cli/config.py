"""`samserve config`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samserve.cli.bridge import bridge_extra
from samserve.cli.options import Assignments, ConfigFile
from samserve.cli.terminal import STDOUT, write_json, write_line

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_settings import BaseSettings


def config(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of TOML.")] = False,
    of_bridge: Annotated[
        bool, typer.Option("--bridge", help="Print the settings of `samserve bridge`.")
    ] = False,
    config: ConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Print the effective settings as a file for --config."""
    from samserve.cli.configuration import load_settings, load_settings_of

    settings: BaseSettings
    if of_bridge:
        with bridge_extra():
            from samserve.bridge.settings import BridgeSettings

        settings = load_settings_of(BridgeSettings, config, assignments)
    else:
        settings = load_settings(config, assignments)
    if as_json:
        write_json(STDOUT, _values(settings))
        return
    write_line("\n".join(_toml(settings)))


def _values(settings: BaseSettings) -> dict[str, dict[str, Any]]:
    # In this mode pydantic masks secrets.
    return settings.model_dump(mode="json")


def _toml(settings: BaseSettings) -> Iterator[str]:
    for section, values in _values(settings).items():
        yield from _section(section, getattr(settings, section), values)


def _section(path: str, section: BaseModel, values: dict[str, Any]) -> Iterator[str]:
    yield f"[{path}]"
    inner = [name for name, value in values.items() if isinstance(value, dict)]
    for name in [each for each in values if each not in inner]:
        description = type(section).model_fields[name].description or ""
        yield from (f"# {line}" for line in description.splitlines())
        # TOML has no null.
        yield f"# {name} =" if values[name] is None else f"{name} = {json.dumps(values[name])}"
    yield ""
    for name in inner:
        yield from _section(f"{path}.{name}", getattr(section, name), values[name])
