"""What ends a command with one line for the user."""

from __future__ import annotations

INTERRUPTED = 130
"""The exit code after Ctrl-C."""


class CommandError(Exception):
    """Something that the user can understand and mend; one line each."""

    exit_code = 1

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class UsageError(CommandError):
    """The command line or a file that it names is wrong."""

    exit_code = 2
