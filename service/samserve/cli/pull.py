"""`samserve models pull`."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samserve.cli import user_models
from samserve.cli.catalog import CatalogFile, cost_lines, find_entry
from samserve.cli.errors import CommandError, UsageError
from samserve.cli.export_options import ExportFlags, export_errors, run_export, to_options
from samserve.cli.progress import byte_progress
from samserve.cli.terminal import write_line, write_note

if TYPE_CHECKING:
    from samserve.export.catalog import Entry
    from samserve.export.pipeline import ExportOptions

DEFAULT_CHECKPOINT_DIR = Path("~/.cache/samserve/checkpoints")

CheckpointDir = Annotated[
    Path,
    typer.Option(
        "--checkpoint-dir",
        metavar="DIR",
        file_okay=False,
        envvar="SAMSERVE_CHECKPOINT_DIR",
        help="Directory for downloaded checkpoints. Those of the hub are in its own cache.",
    ),
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
    default: Annotated[
        bool, typer.Option("--default", help="Make it the default model of this user's servers.")
    ] = False,
    sha256: Annotated[
        str, typer.Option("--sha256", metavar="HEX", help="Expected SHA-256 of the checkpoint.")
    ] = "",
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Accept the checkpoint without a checksum.")
    ] = False,
    checkpoint_dir: CheckpointDir = DEFAULT_CHECKPOINT_DIR,
    catalog: CatalogFile = None,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing", help="Do nothing if the repository has a model of that name."
        ),
    ] = False,
) -> None:
    """Download a published checkpoint and export it to a model repository.

    The same command resumes an interrupted download that has a checksum. Other options are those of
    `samserve export`.
    """
    flags = replace(flags, name=flags.name or catalog_name)
    entry = find_entry(catalog_name, catalog)
    repository = _repository(flags, default)
    if skip_existing and _exists(repository, flags.name):
        write_line(f"{flags.name} already exists in {repository}")
        _finish(flags, default)
        return
    flags = replace(flags, license=flags.license or entry.license)
    options = to_options(flags, variant=entry.variant)
    checksum = _checksum(entry, sha256, unverified)
    _check_requirements(entry, repository)
    if entry.hub:
        run_export(*_from_hub(entry, options))
    else:
        run_export(_download(entry, checksum, _expand_user(checkpoint_dir)), options)
    _finish(flags, default)


def _check_requirements(entry: Entry, repository: Path) -> None:
    """Raise `CommandError` before the download of a model that cannot be exported here."""
    existing = next(each for each in (repository, *repository.parents) if each.exists())
    if not os.access(existing, os.W_OK):
        raise CommandError(f"{existing}: cannot be written to")
    if entry.hub and Path(entry.hub).exists():
        raise CommandError(f"{entry.hub} exists here and would be exported: use another directory")
    with export_errors():
        from samserve.export.families import check_requirements

        check_requirements(entry.variant)


def _finish(flags: ExportFlags, default: bool) -> None:
    if default:
        user_models.set_default(flags.name)
    elif flags.repository is None:
        write_note(f"serve it with: samserve serve --model {flags.name}")


def _repository(flags: ExportFlags, default: bool) -> Path:
    """Return the repository to write to.  Raises for a name that would not be served from it."""
    if flags.repository is not None:
        if default:
            raise UsageError("--default is for models without --repository")
        return flags.repository
    if flags.name in user_models.packaged_names():
        raise CommandError(
            f"the package has a model {flags.name!r}, which would be served in its place: "
            "set another --name"
        )
    return user_models.folder()


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


def _checksum(entry: Entry, sha256: str, unverified: bool) -> str | None:
    from samserve.export.download import parse_checksum
    from samserve.export.errors import ExportError

    if entry.hub:
        if sha256 or unverified:
            raise UsageError(f"{entry.name} is verified against the digests that the hub lists")
        return None
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


def _from_hub(entry: Entry, options: ExportOptions) -> tuple[str, ExportOptions]:
    """Download and verify a model of the hub; return its name, and the options with its commit."""
    with export_errors():
        from samserve.export.sources import hub

        try:
            published = hub.describe(entry.hub)
        except hub.NotAvailable as error:
            folder, commit = hub.fetch(entry.hub)  # from the cache, or the same error
            write_note(f"{error}; commit {commit} is in {folder}")
            return entry.hub, replace(options, revision=commit)
        missing = sum(file.size for file in published.missing)
        _announce(entry, f"{entry.hub} on the hub, commit {published.commit}")
        write_note(
            f"{missing / 2**20:.0f} of {published.size / 2**20:.0f} MiB are not yet in "
            f"{hub.cache_folder(entry.hub)}"
        )
        with byte_progress(entry.name) as update:
            folder = hub.obtain(published, update)
    for file in published.files:
        write_line(f"{folder / file.name}: {file.size} bytes, {file.checksum}")
    return entry.hub, replace(options, revision=published.commit)


def _announce(entry: Entry, source: str) -> None:
    write_note(f"{entry.name} from {source} ({entry.license}, {entry.page})")
    for line in cost_lines(entry):
        write_note(line)


def _download(entry: Entry, checksum: str | None, checkpoint_dir: Path) -> Path:
    from samserve.export.download import checksum_of, download, shown

    _announce(entry, shown(entry.url))
    # File names repeat between publishers; one folder per URL keeps them apart.
    folder = checkpoint_dir / hashlib.sha256(entry.url.encode()).hexdigest()[:12]
    with export_errors(), byte_progress(entry.name) as update:
        path = download(entry.url, folder, checksum, update)
    sha256 = checksum_of(path).removeprefix("sha256:")
    write_line(f"{path}: {path.stat().st_size} bytes, sha256 {sha256}")
    return path
