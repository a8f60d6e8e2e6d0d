"""`samserve models`: the models of a server, and those that can be downloaded."""

from __future__ import annotations

from dataclasses import asdict, astuple
from typing import TYPE_CHECKING, Annotated

import typer

from samserve.cli.command import Commands
from samserve.cli.endpoint import Endpoint
from samserve.cli.errors import UsageError
from samserve.cli.export_options import card_lines
from samserve.cli.pull import catalog, pull
from samserve.cli.terminal import STDOUT, print_table, write_json, write_line
from samserve.cli.upgrade import upgrade

if TYPE_CHECKING:
    from samserve.client import Catalog, Model

_COLUMNS = (
    *("name", "family", "side", "embedding", "capabilities", "transport", "digest"),
    *("precision", "masks", "description"),
)

AsJson = Annotated[
    bool, typer.Option("--json", help="Print everything as JSON, including limits and defaults.")
]

models = Commands()
models.command()(pull)
models.command()(catalog)
models.command()(upgrade)


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context, *, as_json: AsJson = False, endpoint: Endpoint) -> None:
    """List the served models; * marks the default.

    `masks` is the mean IoU with the masks of the checkpoint, measured by the export.
    """
    if context.invoked_subcommand is not None:
        if as_json or any(astuple(endpoint)):
            raise UsageError(f"options must follow {context.invoked_subcommand!r}, not precede it")
        return
    listing = _served(endpoint)
    if as_json:
        write_json(STDOUT, asdict(listing))
        return
    print_table([_COLUMNS, *(_row(model) for model in listing.models)])


@models.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a served model.")],
    endpoint: Endpoint,
) -> None:
    """Print the card of a served model: its source, precision and parity."""
    listing = _served(endpoint)
    found = [model for model in listing.models if model.name == name]
    if not found:
        names = ", ".join(model.name for model in listing.models)
        raise UsageError(f"no model {name!r} is served; served models: {names}")
    (model,) = found
    write_line(f"model: {model.name}")
    write_line(f"description: {model.description}")
    write_line(f"digest: {model.digest}")
    write_line(f"encoder digest: {model.encoder_digest}")
    for line in card_lines(model.card) or ["card: none; the export did not write one"]:
        write_line(line)


def _served(endpoint: Endpoint) -> Catalog:
    from samserve.cli import session

    async def work() -> Catalog:
        async with session.connected(endpoint) as client:
            return await client.models()

    return session.run(work())


def _row(model: Model) -> tuple[str, ...]:
    parity = model.card.parity
    return (
        f"{model.name} *" if model.default else model.name,
        model.family,
        str(model.image_side),
        f"{model.embedding_bytes / (1 << 20):.1f} MiB",
        ",".join(model.capabilities),
        model.transport,
        model.digest[:12],
        model.card.precision or "-",
        "-" if parity is None or not parity.prompts else f"{parity.mean_iou:.4f}",
        model.description,
    )
