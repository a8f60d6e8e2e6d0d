"""`samserve models`: what a server serves, and what can be downloaded for it."""

from __future__ import annotations

from dataclasses import asdict, astuple
from typing import TYPE_CHECKING, Annotated

import typer

from samserve.cli.command import Commands
from samserve.cli.endpoint import Endpoint
from samserve.cli.errors import UsageError
from samserve.cli.export_options import card_lines
from samserve.cli.pull import known, pull
from samserve.cli.terminal import STDOUT, print_table, say, write_json
from samserve.cli.upgrade import upgrade

if TYPE_CHECKING:
    from samserve.client import Catalog, Model

_COLUMNS = (
    *("name", "family", "side", "embedding", "takes", "transport", "digest"),
    *("precision", "masks", "description"),
)

AsJson = Annotated[
    bool, typer.Option("--json", help="Everything, limits and defaults too, as JSON.")
]

models = Commands()
models.command()(pull)
models.command()(known)
models.command()(upgrade)


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context, *, as_json: AsJson = False, endpoint: Endpoint) -> None:
    """List the served models; * marks the default.  `pull` gets others.

    `masks` is the mean IoU of a model's masks with its checkpoint's own, as compared at the export.
    """
    if context.invoked_subcommand is not None:
        if as_json or any(astuple(endpoint)):
            raise UsageError(f"give options after {context.invoked_subcommand!r}, not before it")
        return
    catalog = _served(endpoint)
    if as_json:
        write_json(STDOUT, asdict(catalog))
        return
    print_table([_COLUMNS, *(_row(model) for model in catalog.models)])


@models.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a served model.")],
    endpoint: Endpoint,
) -> None:
    """Print a served model's card: where it comes from, and what was lost on the way."""
    catalog = _served(endpoint)
    found = [model for model in catalog.models if model.name == name]
    if not found:
        there = ", ".join(model.name for model in catalog.models)
        raise UsageError(f"no model {name!r} is served; there are: {there}")
    (model,) = found
    say(f"model: {model.name}")
    say(f"description: {model.description}")
    say(f"digest: {model.digest}")
    say(f"encoder digest: {model.encoder_digest}")
    for line in card_lines(model.card) or ["card: none was written when the model was exported"]:
        say(line)


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
