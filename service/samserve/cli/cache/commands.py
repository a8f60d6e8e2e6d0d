"""`samserve cache`: filling, inspecting and deleting from the embedding cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samserve.cli.command import Commands
from samserve.cli.endpoint import Endpoint
from samserve.cli.errors import UsageError
from samserve.cli.options import (
    Assignments,
    CaFile,
    ConfigFile,
    JsonFile,
    ModelName,
    Recursive,
    TokenFile,
)
from samserve.cli.terminal import write_line

cache = Commands()

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="Directory with images: JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF and others.",
    ),
]
RunningServer = Annotated[
    str,
    typer.Option("--server", metavar="HOST:PORT", help="Address of the running server. Required."),
]


@cache.callback(invoke_without_command=True)
def show_help(context: typer.Context) -> None:
    """Fill and inspect the embedding cache, and delete embeddings."""
    if context.invoked_subcommand is None:
        write_line(context.get_help())


@cache.command()
def warm(  # noqa: PLR0913 - each is an option of the command line
    folder: Folder,
    *,
    server: RunningServer = "",
    model: ModelName = "",
    ca: CaFile = None,
    token_file: TokenFile = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=256, help="Maximum number of concurrent calls.")
    ] = 4,
    recursive: Recursive = False,
    no_wait: Annotated[
        bool,
        typer.Option(
            "--no-wait", help="Return once encoding has started; later failures are not reported."
        ),
    ] = False,
    durable: Annotated[
        bool,
        typer.Option("--durable", help="Fail if the loss of one machine could lose the embedding."),
    ] = False,
    as_json: Annotated[
        str,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write JSON Lines, one record per file; `-` is standard output.",
        ),
    ] = "",
) -> None:
    """Embed every image of a directory, so that later predictions find it in the cache.

    Names that start with a dot are skipped. Images that cannot be embedded are listed at the end,
    and the exit code is then 1. `samserve cache rm -` reads the records of --json.
    """
    from samserve.cli import embed_many, files, inputs

    if no_wait and durable:
        raise UsageError("--durable and --no-wait exclude each other")
    files.check_outputs(None, as_json)
    endpoint = _endpoint("warm", server, ca, token_file)
    options = embed_many.EmbedManyOptions(model, concurrency, wait=not no_wait, durable=durable)
    found = inputs.find([folder], recursive=recursive)
    embed_many.run(found, endpoint, options, as_json, None)


@cache.command()
def rm(
    ids: Annotated[
        list[str],
        typer.Argument(
            metavar="ID",
            help="Embedding ids; `-` reads ids, or records of `embed` and `warm --json`, one per "
            "line, from standard input.",
        ),
    ],
    *,
    server: RunningServer = "",
    ca: CaFile = None,
    token_file: TokenFile = None,
) -> None:
    """Delete embeddings from both tiers of the cache, on all gateways that share it.

    Prints for each whether it was deleted or not found; exit code 1 if one could not be deleted.
    """
    from samserve.cli.cache import rm

    endpoint = _endpoint("rm", server, ca, token_file)
    rm.run(rm.parse_ids(ids), endpoint)


@cache.command()
def stats(
    config: ConfigFile = None, assignments: Assignments = None, as_json: JsonFile = ""
) -> None:
    """Show the cache statistics of this machine's server and the state of the shared tier.

    Takes the server's own settings. Statistics are read from the server's admin listener, and each
    node is checked directly; the value that is written to a master, to check durability, expires
    after a second. Exit code 1 if the server or a node does not respond.
    """
    from samserve.cli import files
    from samserve.cli.cache import stats
    from samserve.cli.configuration import load_settings

    files.check_outputs(None, as_json)
    stats.run(load_settings(config, assignments), as_json)


def _endpoint(command: str, server: str, ca: Path | None, token_file: Path | None) -> Endpoint:
    if not server:
        raise UsageError(
            f"{command} requires --server HOST:PORT: the cache of a temporary server would be lost"
        )
    endpoint = Endpoint(server, ca=ca, token_file=token_file)
    endpoint.check()
    return endpoint
