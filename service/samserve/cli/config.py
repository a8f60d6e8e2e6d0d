"""`samserve config`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samserve.cli.options import Assignments, ConfigFile
from samserve.cli.terminal import STDOUT, say, write_json

if TYPE_CHECKING:
    from samserve.settings import Settings


def config(
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of TOML.")] = False,
    config: ConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Print the effective settings, which is a file that --config takes."""
    from samserve.cli.configuration import load_settings

    settings = load_settings(config, assignments)
    if as_json:
        write_json(STDOUT, _values(settings))
        return
    say("\n".join(_toml(settings)))


def _values(settings: Settings) -> dict[str, dict[str, Any]]:
    # In this mode pydantic writes stars for secrets.
    return settings.model_dump(mode="json")


def _toml(settings: Settings) -> Iterator[str]:
    for section, values in _values(settings).items():
        fields = type(getattr(settings, section)).model_fields
        yield f"[{section}]"
        for name, value in values.items():
            yield from (f"# {line}" for line in (fields[name].description or "").splitlines())
            # TOML has no word for unset.
            yield f"# {name} =" if value is None else f"{name} = {json.dumps(value)}"
        yield ""
