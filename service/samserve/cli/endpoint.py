"""The options with which a command finds its server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from samserve.cli.errors import UsageError
from samserve.cli.options import Assignments, CaFile, ConfigFile, TokenFile
from samserve.system.addresses import parse_target


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a command finds its server; an empty *server* starts one with the settings.

    *ca* and *token_file* win over what the environment says of the way to *server*.
    """

    server: Annotated[
        str,
        typer.Option(
            "--server",
            metavar="HOST:PORT",
            help="A running server. Without it, one runs in this process for this command.",
        ),
    ] = ""
    config: ConfigFile = None
    assignments: Assignments = None
    ca: CaFile = None
    token_file: TokenFile = None

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
