"""Collects the commands, and turns mistakes into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

from samserve import __version__
from samserve.cli import terminal
from samserve.cli.automask import automask
from samserve.cli.cache.commands import cache
from samserve.cli.command import Commands
from samserve.cli.config import config
from samserve.cli.doctor import doctor
from samserve.cli.embed import embed
from samserve.cli.errors import INTERRUPTED, CommandError
from samserve.cli.export import export
from samserve.cli.keys import keys
from samserve.cli.models import models
from samserve.cli.predict import predict
from samserve.cli.serve import serve

app = Commands(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
for command in (serve, embed, predict, automask, export, config, doctor):
    app.command()(command)
app.add_typer(models, name="models")
app.add_typer(keys, name="keys")
app.add_typer(cache, name="cache")


@app.callback(invoke_without_command=True)
def samserve(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """Segment images with prompts, through a gRPC server.

    Commands that need a server start one in their own process, unless --server names one.
    """
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and give its exit code, see `samserve.cli.main`."""
    terminal.write_anything()
    command = get_command(app)
    try:
        args = None if arguments is None else list(arguments)
        code = int(command.main(args=args, prog_name="samserve", standalone_mode=False) or 0)
    except CommandError as error:
        return _complain(error.lines, error.exit_code)
    except typer.TyperException as error:
        return _complain([_wrong_usage(error)], error.exit_code)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has ended; Python would complain about that at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _complain([_os_error(error)], 1)
    # Typer makes this code of most interrupts and says nothing.
    return _complain(["interrupted"], code) if code == INTERRUPTED else code


def _wrong_usage(error: typer.TyperException) -> str:
    from pydantic import ValidationError

    from samserve.settings.validation import describe, shown

    cause = error.__cause__
    if isinstance(cause, ValidationError):
        # What a type or a bound of an option does not allow is told as for settings.
        problem = cause.errors(include_url=False)[0]
        value = shown(problem["input"])
        text = describe(problem, otherwise=error.message)
        error.message = text if problem["type"] == "value_error" else f"{text}; got {value}"
    return error.format_message()


def _os_error(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def _complain(lines: Sequence[str], exit_code: int) -> int:
    for line in lines:
        terminal.note(f"samserve: error: {' '.join(line.split())}")
    return exit_code
