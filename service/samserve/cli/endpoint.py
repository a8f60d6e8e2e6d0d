"""The options that select the server of a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from samserve.cli.errors import UsageError
from samserve.cli.options import Assignments, CaFile, ConfigFile, TokenFile
from samserve.system.addresses import parse_target


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The server of a command; an empty *server* starts one in this process, with the settings.

    *ca* and *token_file* override the connection settings of the environment.
    """

    help_panel: ClassVar[str] = "Server"

    server: Annotated[
        str,
        typer.Option(
            "--server",
            metavar="HOST:PORT",
            help="Address of a running server. Default: a server in the process of the command.",
        ),
    ] = ""
    config: ConfigFile = None
    assignments: Assignments = None
    ca: CaFile = None
    token_file: TokenFile = None

    def check(self) -> None:
        """Raise `UsageError` for options that exclude each other."""
        if self.server:
            try:
                parse_target(self.server)
            except ValueError as error:
                raise UsageError(f"--server: {error}") from None
        if self.server and (self.config or self.assignments):
            raise UsageError(
                "--config and --set apply to the server that this command starts; "
                "they cannot be combined with --server"
            )
        if not self.server and (self.ca or self.token_file):
            raise UsageError("--ca and --token-file require --server")
