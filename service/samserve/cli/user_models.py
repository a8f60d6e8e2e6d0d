"""The folder of the user's own models, and `samserve models default`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samserve.cli.errors import CommandError, UsageError
from samserve.cli.terminal import write_line

UNDO = "samserve models default --unset"


def folder() -> Path:
    """Return the folder of the user's models, which may not exist."""
    from samserve.settings.folders import user_models

    found = user_models()
    if found is None:
        raise CommandError(
            "there is no home directory for the models: set XDG_DATA_HOME, or name a repository"
        )
    return found


def packaged_names() -> list[str]:
    """Return the names of the models of the package."""
    from samserve import app
    from samserve.models.repository import discover

    return [bundle.info.name for bundle in discover(app.default_repository())]


def set_default(name: str) -> None:
    """Make a model the default of this user's servers; empty for none."""
    from samserve.models.selection import write_default

    target = folder()
    try:
        write_default(target, name)
    except OSError as error:
        raise CommandError(f"{error.filename or target}: {error.strerror or error}") from error
    if name:
        write_line(f"{name} is now the default model of `samserve serve`; undo with: {UNDO}")


def default(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Name of the model.")] = "",
    *,
    unset: Annotated[
        bool, typer.Option("--unset", help="Return to the default model of the package.")
    ] = False,
) -> None:
    """Print or set the default model of this user.

    It applies to servers without the settings `engine.model_repository`, `engine.models` and
    `engine.default_model`.
    """
    from samserve.errors import EngineUnavailable
    from samserve.models.repository import discover_each
    from samserve.models.selection import read_default

    if name and unset:
        raise UsageError("NAME and --unset exclude each other")
    if unset:
        set_default("")
    if name:
        own = discover_each(folder())[0]
        known = sorted({*packaged_names(), *(bundle.info.name for bundle in own)})
        if name not in known:
            raise CommandError(f"there is no model {name!r}; available: {', '.join(known)}")
        folder().mkdir(parents=True, exist_ok=True)
        set_default(name)
        return
    try:
        current = read_default(folder())
    except EngineUnavailable as error:
        raise CommandError(error.message) from error
    write_line(current or f"{min(packaged_names())} (of the package)")
