"""`samserve keys`: API keys, made and kept without a server."""

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
from samserve.cli.terminal import print_table, say

if TYPE_CHECKING:
    from samserve.security.keys import KeyEntry, KeyRing

keys = Commands()

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "y": timedelta(days=365)}


@dataclass(frozen=True, slots=True)
class KeyOptions:
    """What a key is to stand for, and the file that gets its entry."""

    tenant: Annotated[
        str, typer.Option("--tenant", help="Tenant that the key's caller belongs to.")
    ]
    role: Annotated[
        list[str] | None,
        typer.Option(
            "--role",
            help="Role of the caller; repeatable. Without one, the tenant's roles in the policy "
            "hold.",
        ),
    ] = None
    expires: Annotated[
        str, typer.Option("--expires", metavar="TIME", help="Life of the key: 12h, 90d, 1y.")
    ] = ""
    note: Annotated[
        str, typer.Option("--note", help="Whom to ask about the key; kept in clear.")
    ] = ""
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            metavar="FILE",
            dir_okay=False,
            help="Key file that gets the entry; else stdout.",
        ),
    ] = None


@keys.callback(invoke_without_command=True)
def help_with_keys(context: typer.Context) -> None:
    """Make and list API keys."""
    if context.invoked_subcommand is None:
        say(context.get_help())


@keys.command()
def new(options: KeyOptions) -> None:
    """Make a key. It is printed once; the file gets only its hash.

    Without --file the entry for the key file goes to standard error.
    """
    from samserve.security.keys import new_key

    key = new_key()
    _keep(key, options)
    say(key)


@keys.command(name="hash")
def hash_key(options: KeyOptions) -> None:
    """Make the entry of a key that `new` has made elsewhere and that standard input holds."""
    key = typer.get_binary_stream("stdin").readline().decode("utf-8", "replace").strip()
    _keep(key, options)


@keys.command(name="list")
def list_keys(
    file: Annotated[Path, existing_file("Key file.", "--file")],
) -> None:
    """List the keys of a file: everything but their secrets, which it does not hold."""
    now = datetime.now(UTC)
    rows = [_row(entry, now) for entry in _read(file).entries]
    print_table([("id", "tenant", "roles", "created", "expires", "note"), *rows])


def _keep(key: str, options: KeyOptions) -> None:
    """Add the entry to the file, or print it where it does not mix with the key."""
    from pydantic import ValidationError

    from samserve.security.keys import entry_for
    from samserve.settings.validation import describe

    try:
        entry = entry_for(
            key,
            options.tenant,
            tuple(options.role or ()),
            expires=_end(options.expires),
            note=options.note,
        )
    except ValidationError as error:
        problems = error.errors(include_url=False)
        parts = [f"{'.'.join(map(str, each['loc']))}: {describe(each)}" for each in problems]
        raise UsageError(*parts) from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    if options.file is None:
        typer.echo(entry.toml(), err=True)
        return
    _append(options.file, entry)


def _append(file: Path, entry: KeyEntry) -> None:
    """Write a new file beside it and put that in place: a server never reads a half of it."""
    # A link stays one, and what it leads to gets the key.
    file = file.resolve()
    with _alone_in(file.parent):
        there = file.read_bytes() if file.exists() else b""
        if there:
            # Which says what is wrong with a file that is not one of keys, or not UTF-8.
            _check_new(file, entry)
        _replace(file, f"{there.decode().rstrip()}\n\n{entry.toml()}".lstrip())


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep others who add keys out: one would lose what the other has written."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _replace(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    # Hashes are no secrets, but others need not read them.
    mode = file.stat().st_mode & 0o777 if file.exists() else 0o600
    try:
        with os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
        ) as out:
            os.fchmod(out.fileno(), mode)
            if file.exists():
                # The server's user must be able to read it, also if root has added the key.
                os.fchown(out.fileno(), file.stat().st_uid, file.stat().st_gid)
            out.write(text.encode())
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _check_new(file: Path, entry: KeyEntry) -> None:
    if entry.id in {known.id for known in _read(file).entries}:
        raise CommandError(f"{file}: has the key {entry.id} already")


def _read(file: Path) -> KeyRing:
    from samserve.errors import Misconfigured
    from samserve.security.keys import parse_keys

    try:
        return parse_keys(file.read_bytes())
    except Misconfigured as error:
        raise CommandError(f"{file}: {error.message}") from error


def _row(entry: KeyEntry, now: datetime) -> tuple[str, ...]:
    ends = "never" if entry.expires is None else _day(entry.expires)
    return (
        entry.id,
        entry.tenant,
        ",".join(entry.roles) or "-",
        "-" if entry.created is None else _day(entry.created),
        f"{ends} (over)" if entry.expired(now) else ends,
        entry.note,
    )


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _end(life: str) -> datetime | None:
    if not life:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})([hdy])", life)
    if match is None:
        raise UsageError(f"--expires {life!r}: expected a time such as 12h, 90d or 1y")
    now = datetime.now(UTC).replace(microsecond=0)
    try:
        return now + int(match[1]) * _UNITS[match[2]]
    except OverflowError:
        raise UsageError(f"--expires {life!r}: is beyond the year 9999") from None
