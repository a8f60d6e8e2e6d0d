"""The options of `samserve annotate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from samserve.cli.endpoint import Endpoint
from samserve.cli.errors import UsageError
from samserve.cli.options import Assignments, CaFile, ConfigFile, TokenFile

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Folder with its subfolders, .zip file, text file with a path or URL in each line, or "
        "URL of fsspec such as s3://bucket/photos.",
    ),
]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Where the records are written, and how many images are under way."""

    out: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder or URL of fsspec for the records. The same again continues.",
        ),
    ]
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            metavar="N",
            min=1,
            max=1024,
            help="Images under way. Default: 4 for each server.",
        ),
    ] = None
    shard: Annotated[
        str,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Annotate only part I, from 0, of N parts. No COCO file is written.",
        ),
    ] = ""
    no_coco: Annotated[
        bool, typer.Option("--no-coco", help="Do not write annotations.json at the end.")
    ] = False


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The servers of a command, used evenly; without any, one starts in this process."""

    help_panel: ClassVar[str] = "Server"

    server: Annotated[
        list[str] | None,
        typer.Option(
            "--server",
            metavar="HOST:PORT",
            help="Address of a running server; several, repeated or separated by commas, are used "
            "evenly. Default: a server in the process of the command.",
        ),
    ] = None
    config: ConfigFile = None
    assignments: Assignments = None
    ca: CaFile = None
    token_file: TokenFile = None

    def each(self) -> list[Endpoint]:
        """Return the single servers.  Raises `UsageError` for one that is named twice."""
        given = [part.strip() for text in self.server or () for part in text.split(",")]
        targets = [part for part in given if part] or [""]
        if len(set(targets)) < len(targets):
            raise UsageError("--server: the same server is named twice")
        endpoints = [
            Endpoint(target, self.config, self.assignments, self.ca, self.token_file)
            for target in targets
        ]
        for endpoint in endpoints:
            endpoint.check()
        return endpoints
