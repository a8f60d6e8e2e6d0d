"""The images that a command reads: files, directories and standard input."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from samserve.cli.errors import CommandError, UsageError
from samserve.cli.terminal import write_note
from samserve.client import ImageTooLarge, ImageUnreadable
from samserve.client.channel import MAX_MESSAGE_BYTES
from samserve.client.images import FORMATS, SUFFIXES, File, load

_STDIN = Path("-")


@dataclass(frozen=True, slots=True)
class Input:
    """An image to read; *relative* is its path within the directory that was given, or its name."""

    path: Path
    relative: Path

    def __str__(self) -> str:
        """Return the path, ``-`` for standard input."""
        return str(self.path)

    def load(self) -> File:
        """Read the image, and convert it if the server does not decode its format.

        Raises `CommandError`, whose text does not contain the path.
        """
        try:
            if self.path == _STDIN:
                return load(_read_stdin())
            return load(self.path)
        except (ImageTooLarge, ImageUnreadable) as error:
            raise CommandError(error.field_violations[0].description) from error
        except OSError as error:
            raise CommandError(error.strerror or str(error)) from error

    def load_with_note(self) -> File:
        """Read the only image of a command; note on standard error if it was converted.

        Raises `CommandError`.
        """
        try:
            file = self.load()
        except CommandError as error:
            raise CommandError(f"{self}: {error}") from error
        if file.converted_from:
            write_note(f"converted {self} from {file.converted_from} to PNG")
        return file


@dataclass(frozen=True, slots=True)
class Found:
    """Images in order, directories that could not be read, and the number of other files.

    *several* is whether there may be more than one image: several arguments, or a directory.
    """

    images: Sequence[Input]
    failures: Sequence[OSError] = ()
    skipped: int = 0
    several: bool = True


def find(arguments: Sequence[Path], *, recursive: bool) -> Found:
    """Return the named files, and the images of directories by the suffixes of their names.

    Names that start with a dot are skipped in directories.  Raises `UsageError` for a name that
    does not exist or is given twice, and for a directory without images.
    """
    if len(set(arguments)) < len(arguments):
        raise UsageError("the same file is named twice")
    images: list[Input] = []
    failures: list[OSError] = []
    skipped = 0
    several = len(arguments) > 1
    for argument in arguments:
        if argument == _STDIN:
            images.append(Input(argument, Path("stdin")))
            continue
        if not argument.exists():
            raise UsageError(f"IMAGE '{argument}' does not exist")
        if not argument.is_dir():
            images.append(Input(argument, Path(argument.name)))
            continue
        found = _walk(argument, recursive=recursive)
        images += found.images
        failures += found.failures
        skipped += found.skipped
        several = True
    return Found(images, failures, skipped, several)


def single(argument: Path) -> Input:
    """Return the only image of a command.  Raises `UsageError` if it does not exist."""
    if argument.is_dir():
        raise UsageError(f"IMAGE '{argument}' is a directory")
    (image,) = find([argument], recursive=False).images
    return image


def _walk(folder: Path, *, recursive: bool) -> Found:
    failures: list[OSError] = []
    paths: list[Path] = []
    skipped = 0
    for parent, folders, names in os.walk(folder, onerror=failures.append):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        files = [path for name in names if not _is_special(path := Path(parent, name))]
        found = [path for path in files if _is_image(path)]
        paths += found
        skipped += len(files) - len(found)
    if not paths and not failures:
        hint = "" if recursive else " (--recursive includes subdirectories)"
        raise UsageError(f"{folder}: contains no {FORMATS} file{hint}")
    images = [Input(path, path.relative_to(folder)) for path in sorted(paths)]
    return Found(images, failures, skipped)


def _is_image(path: Path) -> bool:
    # In directories only: a file that is named on the command line may have any name.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _is_special(path: Path) -> bool:
    """Return whether a path is not a regular file; reading a pipe, for instance, would block."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False  # reported when it is read


def _read_stdin() -> bytes:
    data = typer.get_binary_stream("stdin").read(MAX_MESSAGE_BYTES + 1)
    if len(data) > MAX_MESSAGE_BYTES:
        raise CommandError(f"is larger than {MAX_MESSAGE_BYTES >> 20} MiB")
    return data
