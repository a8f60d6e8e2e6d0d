"""Registers the commands, and turns errors into one line each and an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

from samserve import __version__
from samserve.cli import renames, terminal
from samserve.cli.annotate import annotate
from samserve.cli.automask import automask
from samserve.cli.bridge import bridge
from samserve.cli.cache.commands import cache
from samserve.cli.command import Commands
from samserve.cli.config import config
from samserve.cli.dataset.commands import dataset
from samserve.cli.doctor import doctor
from samserve.cli.embed import embed
from samserve.cli.errors import INTERRUPTED, CommandError
from samserve.cli.export import export
from samserve.cli.keys import keys
from samserve.cli.label_studio import label_studio
from samserve.cli.models import models
from samserve.cli.predict import predict
from samserve.cli.serve import serve
from samserve.cli.tune import tune

app = Commands(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
for command in (serve, bridge, embed, predict, automask, annotate, export, tune, config, doctor):
    app.command()(command)
app.add_typer(models, name="models")
app.add_typer(keys, name="keys")
app.add_typer(cache, name="cache")
app.add_typer(dataset, name="dataset")
app.add_typer(label_studio, name="label-studio")


@app.callback(invoke_without_command=True)
def samserve(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Segment images with prompts, through a gRPC server.

    Commands that need a server start one in their own process, unless --server is given.
    """
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code, see `samserve.cli.main`."""
    terminal.escape_unencodable()
    # Those about odd metadata in images; an image that cannot be read is an error.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    command = get_command(app)
    try:
        args = None if arguments is None else list(arguments)
        code = int(command.main(args=args, prog_name="samserve", standalone_mode=False) or 0)
    except CommandError as error:
        return _print_errors(error.lines, error.exit_code)
    except typer.TyperException as error:
        return _print_errors([_usage_error(error)], error.exit_code)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has exited; Python would report that when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _print_errors([_os_error(error)], 1)
    # Typer returns this code after most interrupts and prints nothing.
    return _print_errors(["interrupted"], code) if code == INTERRUPTED else code


def _usage_error(error: typer.TyperException) -> str:
    renamed = renames.describe(error)
    if renamed:
        return renamed
    from pydantic import ValidationError

    from samserve.settings.validation import describe, short_repr

    cause = error.__cause__
    if isinstance(cause, ValidationError):
        # Types and bounds of options are reported in the same words as those of settings.
        problem = cause.errors(include_url=False)[0]
        value = short_repr(problem["input"])
        text = describe(problem, otherwise=error.message)
        error.message = text if problem["type"] == "value_error" else f"{text}; got {value}"
    return error.format_message()


def _os_error(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def _print_errors(lines: Sequence[str], exit_code: int) -> int:
    for line in lines:
        terminal.write_note(f"samserve: error: {' '.join(line.split())}")
    return exit_code
