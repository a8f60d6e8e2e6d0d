"""Old names of the command line, so that errors can name the new one.

They can leave with the first release after 1.0.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from samserve.cli.errors import UsageError

OPTIONS: Mapping[str, str] = {
    "--keep": "--skip-existing",
    "--cache": "--checkpoint-dir",
    "--no-check": "--no-parity-check",
}
"""New names of options, by old ones; each applies to the commands that have the new one."""

COMMANDS: Mapping[str, str] = {
    "models known": "models catalog",
    "keys new": "keys create",
}
"""New names of commands, by old ones, without the name of the program."""

VARIABLES: Mapping[str, str] = {
    "SAMSERVE_CHECKPOINTS": "SAMSERVE_CHECKPOINT_DIR",
}
"""New names of environment variables, by old ones; each applies to the commands that read it."""

_UNKNOWN_COMMAND = re.compile(r"No such command '([^']*)'")


def describe(error: Any) -> str:
    """Return the text of a usage error that an old name has caused; empty for any other error."""
    context = getattr(error, "ctx", None)
    if context is None:
        return ""
    option = getattr(error, "option_name", "")
    if option in OPTIONS and _has_option(context.command.params, OPTIONS[option]):
        return f"unknown option {option}: it is now {OPTIONS[option]}"
    command = _UNKNOWN_COMMAND.match(error.message)
    if command is None:
        return ""
    name = f"{context.command_path} {command[1]}".partition(" ")[2]
    if name in COMMANDS:
        return f"unknown command `{name}`: it is now `{COMMANDS[name]}`"
    return ""


def check_variables(parameters: Iterable[Any]) -> None:
    """Raise `UsageError` if an old variable is set that one of the parameters would have read."""
    read = {parameter.envvar for parameter in parameters}
    for old, new in VARIABLES.items():
        if new in read and os.environ.get(old):  # noqa: TID251 - not a setting of the server
            raise UsageError(f"unknown environment variable {old}: it is now {new}")


def _has_option(parameters: Iterable[Any], name: str) -> bool:
    return any(name in parameter.opts for parameter in parameters)
