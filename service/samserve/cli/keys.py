"""`samserve keys`: creating and listing API keys, without a server."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samserve.cli.command import Commands
from samserve.cli.errors import CommandError, UsageError
from samserve.cli.options import existing_file
from samserve.cli.terminal import print_table, write_line

if TYPE_CHECKING:
    from samserve.security.keys import KeyEntry, KeyRing

keys = Commands()

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "y": timedelta(days=365)}


@dataclass(frozen=True, slots=True)
class KeyOptions:
    """The identity of a key's caller, and the key file to add it to."""

    tenant: Annotated[str, typer.Option("--tenant", help="Tenant of the caller.")]
    role: Annotated[
        list[str] | None,
        typer.Option(
            "--role",
            help="Role of the caller; repeatable. Default: the tenant's roles in the policy.",
        ),
    ] = None
    expires: Annotated[
        str,
        typer.Option(
            "--expires",
            metavar="TIME",
            help="Lifetime of the key, such as 12h, 90d or 1y. Default: unlimited.",
        ),
    ] = ""
    note: Annotated[
        str, typer.Option("--note", help="Comment, such as a contact; stored in plain text.")
    ] = ""
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            metavar="FILE",
            dir_okay=False,
            help="Key file to append the entry to.",
        ),
    ] = None


@keys.callback(invoke_without_command=True)
def show_help(context: typer.Context) -> None:
    """Create and list API keys."""
    if context.invoked_subcommand is None:
        write_line(context.get_help())


@keys.command()
def create(options: KeyOptions) -> None:
    """Create a key and print it, once; the key file contains only its hash.

    Without --file, the entry for the key file is written to standard error.
    """
    from samserve.security.keys import new_key

    key = new_key()
    _store(key, options)
    write_line(key)


@keys.command(name="hash")
def hash_key(options: KeyOptions) -> None:
    """Create the entry of an existing key, which is read from standard input."""
    key = typer.get_binary_stream("stdin").readline().decode("utf-8", "replace").strip()
    _store(key, options)


@keys.command(name="list")
def list_keys(
    file: Annotated[Path, existing_file("Key file.", "--file")],
) -> None:
    """List the keys of a file, without their secrets, which it does not contain."""
    now = datetime.now(UTC)
    rows = [_row(entry, now) for entry in _read(file).entries]
    print_table([("id", "tenant", "roles", "created", "expires", "note"), *rows])


def _store(key: str, options: KeyOptions) -> None:
    """Add the entry to the key file, or write it to standard error, apart from the key."""
    from pydantic import ValidationError

    from samserve.security.keys import entry_for
    from samserve.settings.validation import describe

    try:
        entry = entry_for(
            key,
            options.tenant,
            tuple(options.role or ()),
            expires=_expiry(options.expires),
            note=options.note,
        )
    except ValidationError as error:
        problems = error.errors(include_url=False)
        parts = [f"{'.'.join(map(str, each['loc']))}: {describe(each)}" for each in problems]
        raise UsageError(*parts) from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    if options.file is None:
        typer.echo(entry.to_toml(), err=True)
        return
    _append(options.file, entry)


def _append(file: Path, entry: KeyEntry) -> None:
    """Replace the file by a complete new one, so that a server never reads a partial file."""
    # A symbolic link is kept; its target gets the key.
    file = file.resolve()
    with _exclusive_lock(file.parent):
        content = file.read_bytes() if file.exists() else b""
        if content:
            # Also raises an error if the file is not a key file or not UTF-8.
            _check_unused_id(file, entry)
        _replace(file, f"{content.decode().rstrip()}\n\n{entry.to_toml()}".lstrip())


@contextmanager
def _exclusive_lock(folder: Path) -> Iterator[None]:
    """Lock a folder against concurrent commands, of which one would overwrite the other's key."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    # Hashes are not secret, but other users need not read them.
    mode = file.stat().st_mode & 0o777 if file.exists() else 0o600
    try:
        with os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
        ) as out:
            os.fchmod(out.fileno(), mode)
            if file.exists():
                # The server's user must still be able to read the file if root has added the key.
                os.fchown(out.fileno(), file.stat().st_uid, file.stat().st_gid)
            out.write(text.encode())
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _check_unused_id(file: Path, entry: KeyEntry) -> None:
    if entry.id in {known.id for known in _read(file).entries}:
        raise CommandError(f"{file}: already contains the key {entry.id}")


def _read(file: Path) -> KeyRing:
    from samserve.errors import Misconfigured
    from samserve.security.keys import parse_keys

    try:
        return parse_keys(file.read_bytes())
    except Misconfigured as error:
        raise CommandError(f"{file}: {error.message}") from error


def _row(entry: KeyEntry, now: datetime) -> tuple[str, ...]:
    expires = "never" if entry.expires is None else _date(entry.expires)
    return (
        entry.id,
        entry.tenant,
        ",".join(entry.roles) or "-",
        "-" if entry.created is None else _date(entry.created),
        f"{expires} (expired)" if entry.is_expired(now) else expires,
        entry.note,
    )


def _date(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _expiry(lifetime: str) -> datetime | None:
    if not lifetime:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})([hdy])", lifetime)
    if match is None:
        raise UsageError(f"--expires {lifetime!r}: expected a lifetime such as 12h, 90d or 1y")
    now = datetime.now(UTC).replace(microsecond=0)
    try:
        return now + int(match[1]) * _UNITS[match[2]]
    except OverflowError:
        raise UsageError(f"--expires {lifetime!r}: the expiry is after the year 9999") from None
