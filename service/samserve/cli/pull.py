"""`samserve models pull` and `samserve models known`."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samserve.cli.errors import CommandError
from samserve.cli.export_options import ExportFlags, export_errors, options_of, run_export
from samserve.cli.options import existing_file
from samserve.cli.progress import downloading
from samserve.cli.terminal import note, print_table, say

if TYPE_CHECKING:
    from samserve.export.catalog import Entry

CACHE = Path("~/.cache/samserve/checkpoints")

CatalogFile = Annotated[
    Path | None,
    existing_file("Catalogue to choose from, instead of the package's own.", "--catalog"),
]


def pull(  # noqa: PLR0913 - each is an option of the command line
    known_name: Annotated[
        str, typer.Argument(metavar="NAME", help="`samserve models known` lists the names.")
    ],
    *,
    flags: ExportFlags,
    sha256: Annotated[
        str, typer.Option("--sha256", metavar="HEX", help="SHA-256 that the checkpoint must have.")
    ] = "",
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Take the checkpoint without a checksum.")
    ] = False,
    cache: Annotated[
        Path,
        typer.Option(
            metavar="DIR", file_okay=False, envvar="SAMSERVE_CHECKPOINTS", help="Keeps checkpoints."
        ),
    ] = CACHE,
    catalog: CatalogFile = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave a model of that name which is there already.")
    ] = False,
) -> None:
    """Download a published checkpoint and turn it into a pair of models to serve.

    A download with a checksum that was cut off is resumed by the same command.  The options are
    those of `export`.
    """
    flags = replace(flags, name=flags.name or known_name)
    entry = _entry(known_name, catalog)
    if keep and _is_there(flags.repository, flags.name):
        say(f"{flags.name} is in {flags.repository} already")
        return
    options = options_of(flags, variant=entry.variant)
    checkpoint = _download(entry, _checksum(entry, sha256, unverified), _expanded(cache))
    run_export(checkpoint, options)


def known(catalog: CatalogFile = None) -> None:
    """List the models that `pull` knows."""
    with export_errors():
        from samserve.export.catalog import load

        entries = load(catalog).values()
    rows = [
        (entry.name, "yes" if entry.checksum else "pass --sha256", entry.license, entry.description)
        for entry in entries
    ]
    print_table([("name", "checksum", "licence", "description"), *rows])


def _is_there(repository: Path, name: str) -> bool:
    # Models appear whole or not at all.
    return all((repository / f"{name}_{role}").is_dir() for role in ("encoder", "decoder"))


def _expanded(cache: Path) -> Path:
    try:
        return cache.expanduser()
    except RuntimeError as error:
        raise CommandError(f"there is no home directory for {cache}; name one: --cache") from error


def _entry(name: str, catalog: Path | None) -> Entry:
    with export_errors():
        from samserve.export.catalog import find, load

        return find(name, load(catalog))


def _checksum(entry: Entry, sha256: str, unverified: bool) -> str | None:
    from samserve.export.download import parse_checksum
    from samserve.export.errors import ExportError

    try:
        checksum = parse_checksum(sha256) if sha256 else entry.checksum
    except ExportError as error:
        raise CommandError(f"--sha256: {error}") from error
    if checksum is None and not unverified:
        raise CommandError(
            f"the publisher of {entry.name} gives no checksum for it; pass the one that you trust "
            "with --sha256, or take what comes with --unverified, which prints its checksum"
        )
    return checksum


def _download(entry: Entry, checksum: str | None, cache: Path) -> Path:
    from samserve.export.download import checksum_of, download, shown

    note(f"{entry.name} from {shown(entry.url)} ({entry.license}, {entry.page})")
    # Names of files repeat; a cached one is trusted to be what its URL gives.
    folder = cache / hashlib.sha256(entry.url.encode()).hexdigest()[:12]
    with export_errors(), downloading(entry.name) as move:
        path = download(entry.url, folder, checksum, move)
    sha256 = checksum_of(path).removeprefix("sha256:")
    say(f"{path}: {path.stat().st_size} bytes, sha256 {sha256}")
    return path
