"""`samserve models pull` and `samserve models catalog`."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samserve.cli.errors import CommandError
from samserve.cli.export_options import ExportFlags, export_errors, run_export, to_options
from samserve.cli.options import existing_file
from samserve.cli.progress import byte_progress
from samserve.cli.terminal import print_table, write_line, write_note

if TYPE_CHECKING:
    from samserve.export.catalog import Entry

DEFAULT_CHECKPOINT_DIR = Path("~/.cache/samserve/checkpoints")

CatalogFile = Annotated[
    Path | None,
    existing_file("Catalog file to use instead of the packaged one.", "--catalog"),
]


def pull(  # noqa: PLR0913 - each is an option of the command line
    catalog_name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name of a model that `samserve models catalog` lists."
        ),
    ],
    *,
    flags: ExportFlags,
    sha256: Annotated[
        str, typer.Option("--sha256", metavar="HEX", help="Expected SHA-256 of the checkpoint.")
    ] = "",
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Accept the checkpoint without a checksum.")
    ] = False,
    checkpoint_dir: Annotated[
        Path,
        typer.Option(
            "--checkpoint-dir",
            metavar="DIR",
            file_okay=False,
            envvar="SAMSERVE_CHECKPOINT_DIR",
            help="Directory for downloaded checkpoints.",
        ),
    ] = DEFAULT_CHECKPOINT_DIR,
    catalog: CatalogFile = None,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing", help="Do nothing if the repository has a model of that name."
        ),
    ] = False,
) -> None:
    """Download a published checkpoint and export it to a model repository.

    The same command resumes an interrupted download that has a checksum. The other options are
    those of `samserve export`.
    """
    flags = replace(flags, name=flags.name or catalog_name)
    entry = _entry(catalog_name, catalog)
    if skip_existing and _exists(flags.repository, flags.name):
        write_line(f"{flags.name} already exists in {flags.repository}")
        return
    options = to_options(flags, variant=entry.variant)
    checksum = _checksum(entry, sha256, unverified)
    run_export(_download(entry, checksum, _expand_user(checkpoint_dir)), options)


def catalog(catalog: CatalogFile = None) -> None:
    """List the models that `samserve models pull` can download."""
    with export_errors():
        from samserve.export.catalog import load

        entries = load(catalog).values()
    rows = [
        (
            entry.name,
            "yes" if entry.checksum else "requires --sha256",
            entry.license,
            entry.description,
        )
        for entry in entries
    ]
    print_table([("name", "checksum", "license", "description"), *rows])


def _exists(repository: Path, name: str) -> bool:
    # The folders of a model are published together.
    return all((repository / f"{name}_{role}").is_dir() for role in ("encoder", "decoder"))


def _expand_user(folder: Path) -> Path:
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise CommandError(
            f"there is no home directory for {folder}; set --checkpoint-dir"
        ) from error


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
            f"the publisher of {entry.name} provides no checksum; pass one that you trust with "
            "--sha256, or accept the file with --unverified, which prints its checksum"
        )
    return checksum


def _download(entry: Entry, checksum: str | None, checkpoint_dir: Path) -> Path:
    from samserve.export.download import checksum_of, download, shown

    write_note(f"{entry.name} from {shown(entry.url)} ({entry.license}, {entry.page})")
    # File names repeat between publishers; one folder per URL keeps them apart.
    folder = checkpoint_dir / hashlib.sha256(entry.url.encode()).hexdigest()[:12]
    with export_errors(), byte_progress(entry.name) as update:
        path = download(entry.url, folder, checksum, update)
    sha256 = checksum_of(path).removeprefix("sha256:")
    write_line(f"{path}: {path.stat().st_size} bytes, sha256 {sha256}")
    return path
