"""Errors that end a command with one line for the user."""

from __future__ import annotations

INTERRUPTED = 130
"""The exit code after Ctrl-C."""


class CommandError(Exception):
    """An error that the user can understand and fix; each argument is one line."""

    exit_code = 1

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class UsageError(CommandError):
    """The command line, or a file that it names, is invalid."""

    exit_code = 2


class SomeFailed(CommandError):
    """A command over many images has finished, but some of them have failed."""

    exit_code = 3
