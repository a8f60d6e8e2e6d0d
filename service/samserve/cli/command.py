"""Commands whose options may come in groups, and are checked before they run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from samserve.cli.errors import UsageError

_FILES = ("FILE", "DIR", "CHECKPOINT")


class Commands(typer.Typer):
    """A set of commands whose options are UTF-8, but for the names of files.

    What else is not UTF-8 could neither be sent nor compared with anything.  A parameter that is a
    dataclass stands for the options that its fields are.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=_Group, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Add a command, as `typer.Typer.command`."""
        add = super().command(name, cls=_Command, **options)
        return lambda function: add(_expanded(function))

    def callback(self, **options: Any) -> Callable[[Any], Any]:
        """Add what the group itself does, as `typer.Typer.callback`."""
        add = super().callback(**options)
        return lambda function: add(_expanded(function))


def _expanded(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameters that are dataclasses by the fields of these."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        each.name: each.annotation
        for each in signature.parameters.values()
        if is_dataclass(each.annotation)
    }
    parameters: list[Parameter] = []
    for each in signature.parameters.values():
        parameters += _options(groups[each.name]) if each.name in groups else [each]

    @functools.wraps(command)
    def called(**values: Any) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(kind=Parameter.KEYWORD_ONLY) for each in parameters]
    )
    return called


def _options(group: type[Any]) -> Iterator[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        default = Parameter.empty if field.default is MISSING else field.default
        yield Parameter(
            field.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
        )


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
