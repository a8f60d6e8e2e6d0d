"""`samserve cache`: what the servers keep, filled, emptied and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samserve.cli.command import Commands
from samserve.cli.endpoint import Endpoint
from samserve.cli.errors import UsageError
from samserve.cli.options import Assignments, CaFile, ConfigFile, JsonFile, ModelName, TokenFile
from samserve.cli.terminal import say

cache = Commands()

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="Folder with .jpg, .jpeg, .png and .webp files.",
    ),
]
RunningServer = Annotated[
    str, typer.Option("--server", metavar="HOST:PORT", help="The running server. Needed.")
]


@cache.callback(invoke_without_command=True)
def help_with_cache(context: typer.Context) -> None:
    """Fill, empty and look at what servers keep of images."""
    if context.invoked_subcommand is None:
        say(context.get_help())


@cache.command()
def warm(  # noqa: PLR0913 - each is an option of the command line
    folder: Folder,
    *,
    server: RunningServer = "",
    model: ModelName = "",
    ca: CaFile = None,
    token_file: TokenFile = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=256, help="Images that are under way at once.")
    ] = 4,
    recursive: Annotated[
        bool,
        typer.Option("--recursive", help="Folders in it too; links to folders are not followed."),
    ] = False,
    no_wait: Annotated[
        bool,
        typer.Option("--no-wait", help="Only have it begun: failures after that are not told."),
    ] = False,
    durable: Annotated[
        bool,
        typer.Option("--durable", help="Fail where the death of one machine could lose it."),
    ] = False,
    as_json: Annotated[
        str,
        typer.Option(
            "--json",
            metavar="FILE",
            help="JSON Lines to write, a record as each file is done; `-` is standard output.",
        ),
    ] = "",
) -> None:
    """Embed every image of a folder, so that predictions on them find it done.

    Names that begin with a dot are passed over. What cannot be embedded is told at the end, and
    makes the exit code 1. `samserve cache rm -` takes the records.
    """
    from samserve.cli import files
    from samserve.cli.cache import warm

    if no_wait and durable:
        raise UsageError("--durable means to wait: leave out --no-wait")
    files.check_outputs(None, as_json)
    endpoint = _endpoint("warm", server, ca, token_file)
    wish = warm.Wish(model, concurrency, wait=not no_wait, durable=durable)
    warm.run(warm.find(folder, recursive=recursive), endpoint, wish, as_json)


@cache.command()
def rm(
    ids: Annotated[
        list[str],
        typer.Argument(
            metavar="ID",
            help="Ids of embeddings; `-` reads ids, or records of `warm --json`, a line each, "
            "from standard input.",
        ),
    ],
    *,
    server: RunningServer = "",
    ca: CaFile = None,
    token_file: TokenFile = None,
) -> None:
    """Delete embeddings, everywhere that the server shares them.

    Prints for each whether it was deleted or not there; exit code 1 if one could not be deleted.
    """
    from samserve.cli.cache import rm

    endpoint = _endpoint("rm", server, ca, token_file)
    rm.run(rm.named(ids), endpoint)


@cache.command()
def stats(
    config: ConfigFile = None, assignments: Assignments = None, as_json: JsonFile = ""
) -> None:
    """Show what this machine's server has in memory, and whether the shared cache can be used.

    Takes the server's own settings. The server is asked at its admin listener, each node directly;
    what is written to a master, to see whether it is durable, is gone after a second.
    Exit code 1 if one of them does not answer.
    """
    from samserve.cli import files
    from samserve.cli.cache import stats
    from samserve.cli.configuration import load_settings

    files.check_outputs(None, as_json)
    stats.run(load_settings(config, assignments), as_json)


def _endpoint(command: str, server: str, ca: Path | None, token_file: Path | None) -> Endpoint:
    if not server:
        raise UsageError(
            f"{command} needs --server HOST:PORT: a server of its own would forget all at its end"
        )
    endpoint = Endpoint(server, ca=ca, token_file=token_file)
    endpoint.check()
    return endpoint
