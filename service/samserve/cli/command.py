"""Commands that check the text of their options before they run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from samserve.cli.errors import UsageError

_FILES = ("FILE", "DIR", "CHECKPOINT")


class Commands(typer.Typer):
    """A set of commands whose options are UTF-8, but for the names of files.

    What else is not UTF-8 could neither be sent nor compared with anything.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=_Group, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Add a command, as `typer.Typer.command`."""
        return super().command(name, cls=_Command, **options)


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Check the options of the group itself, and run it."""
        _check(self.params, ctx.params)
        return super().invoke(ctx)


class _Command(TyperCommand):
    def invoke(self, ctx: Any) -> Any:
        """Check, and run the command."""
        _check(self.params, ctx.params)
        return super().invoke(ctx)


def _check(parameters: Iterable[Any], values: dict[str, Any]) -> None:
    """Raise `UsageError` for the first text that is not UTF-8."""
    for parameter in parameters:
        if parameter.metavar in _FILES:
            continue
        option = parameter.opts[0]
        name = option if option.startswith("-") else parameter.metavar or option
        for text in _texts(values.get(parameter.name)):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise UsageError(f"{name} {text!r}: is not UTF-8") from None


def _texts(value: Any) -> Iterator[str]:
    """Return the texts among the values of an option, which may be repeated."""
    for each in value if isinstance(value, list | tuple) else (value,):
        if isinstance(each, str):
            yield each
