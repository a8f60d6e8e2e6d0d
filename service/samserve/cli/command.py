"""Commands with groups of options, whose values are checked before the command runs."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import OptionInfo

from samserve.cli import renames
from samserve.cli.errors import UsageError

_FILES = ("FILE", "DIR", "CHECKPOINT")


class Commands(typer.Typer):
    """A set of commands whose option values must be UTF-8, except file names.

    Other values that are not UTF-8 could neither be sent nor compared.  A parameter whose type is a
    dataclass is replaced by one option for each field of it, in the panel of the help that its
    class variable ``help_panel`` names.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=_Group, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Register a command, as `typer.Typer.command` does."""
        add = super().command(name, cls=_Command, **options)
        return lambda function: add(_expand_groups(function))

    def callback(self, **options: Any) -> Callable[[Any], Any]:
        """Register the function of the group itself, as `typer.Typer.callback` does."""
        add = super().callback(**options)
        return lambda function: add(_expand_groups(function))


def _expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameters that are dataclasses by one parameter for each field."""
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
    def wrapper(**values: Any) -> None:
        instances = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **instances)

    wrapper.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(kind=Parameter.KEYWORD_ONLY) for each in parameters]
    )
    return wrapper


def _options(group: type[Any]) -> Iterator[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    panel = getattr(group, "help_panel", None)
    for field in fields(group):
        default = Parameter.empty if field.default is MISSING else field.default
        annotation = hints[field.name] if panel is None else _in_panel(hints[field.name], panel)
        yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _in_panel(annotation: Any, panel: str) -> Any:
    kind, *details = get_args(annotation)
    # Other groups may share the option.
    copies = [copy.copy(each) for each in details]
    for each in copies:
        if isinstance(each, OptionInfo):
            each.rich_help_panel = panel
    return Annotated[kind, *copies]


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Check the options of the group itself and run it."""
        _check(self.params, ctx.params)
        return super().invoke(ctx)


class _Command(TyperCommand):
    def invoke(self, ctx: Any) -> Any:
        """Check the options and run the command."""
        _check(self.params, ctx.params)
        return super().invoke(ctx)


def _check(parameters: Iterable[Any], values: dict[str, Any]) -> None:
    """Raise `UsageError` for an old environment variable or a value that is not UTF-8."""
    parameters = list(parameters)
    renames.check_variables(parameters)
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
    """Yield the strings among the values of an option, which may be repeated."""
    for each in value if isinstance(value, list | tuple) else (value,):
        if isinstance(each, str):
            yield each
