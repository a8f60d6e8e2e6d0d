"""The options with which a command finds its server."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from samserve.cli.errors import UsageError
from samserve.cli.options import Assignments, CaFile, ConfigFile, TokenFile
from samserve.system.addresses import parse_target

_Server = Annotated[
    str,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        help="A running server. Without it, one runs in this process for this command.",
    ),
]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a command finds its server; an empty *server* starts one with the settings.

    *ca* and *token_file* win over what the environment says of the way to *server*.
    """

    server: str = ""
    config: Path | None = None
    assignments: Sequence[str] | None = None
    ca: Path | None = None
    token_file: Path | None = None

    def check(self) -> None:
        """Raise `UsageError` for options that do not go together."""
        if self.server:
            try:
                parse_target(self.server)
            except ValueError as error:
                raise UsageError(f"--server: {error}") from None
        if self.server and (self.config or self.assignments):
            raise UsageError(
                "--config and --set are for the server that this command starts; "
                "they cannot change the one that --server names"
            )
        if not self.server and (self.ca or self.token_file):
            raise UsageError("--ca and --token-file are for the server that --server names")


# The options are those of the fields.
_OPTIONS = (_Server, ConfigFile, Assignments, CaFile, TokenFile)


def with_endpoint(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the last parameter of *command* by the options of an `Endpoint`."""
    signature = inspect.signature(command, eval_str=True)
    *own, last = signature.parameters.values()
    options = [
        Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.default, annotation=option)
        for each, option in zip(fields(Endpoint), _OPTIONS, strict=True)
    ]

    @functools.wraps(command)
    def called(**values: Any) -> None:
        endpoint = Endpoint(**{each.name: values.pop(each.name) for each in options})
        command(**values, **{last.name: endpoint})

    called.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return called
