"""`samserve models`: the models of a server, and those that can be downloaded."""

from __future__ import annotations

from dataclasses import asdict, astuple
from typing import TYPE_CHECKING, Annotated

import typer

from samserve.cli.catalog import catalog, cost_lines, entry_of, figure_lines, source_line
from samserve.cli.command import Commands
from samserve.cli.endpoint import Endpoint
from samserve.cli.errors import UsageError
from samserve.cli.export_options import card_lines
from samserve.cli.promote import promote, rollback
from samserve.cli.pull import pull
from samserve.cli.terminal import STDOUT, print_table, write_json, write_line, write_note
from samserve.cli.upgrade import upgrade
from samserve.cli.user_models import default, folder

if TYPE_CHECKING:
    from samserve.client import Catalog, Model
    from samserve.types import ModelCard, ModelInfo

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
models.command()(default)
models.command()(upgrade)
models.command()(promote)
models.command()(rollback)


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
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of a served, stored or published model.")
    ],
    endpoint: Endpoint,
) -> None:
    """Print the card of a model: its source, license, precision and parity, and what it costs.

    Without --server, NAME may also be a model that `samserve models pull` has stored, or one of its
    catalog.
    """
    listing = _served(endpoint)
    found = [model for model in listing.models if model.name == name]
    if found:
        (model,) = found
        _print_card(model, model.card)
    elif endpoint.server or not (_print_stored(name) or _print_published(name)):
        names = ", ".join(model.name for model in listing.models)
        raise UsageError(f"no model {name!r} is served; served models: {names}")


def _print_card(model: Model | ModelInfo, card: ModelCard) -> None:
    write_line(f"model: {model.name}")
    write_line(f"description: {model.description}")
    write_line(f"digest: {model.digest}")
    write_line(f"encoder digest: {model.encoder_digest}")
    for line in card_lines(card) or ["card: none; the export did not write one"]:
        write_line(line)
    entry = entry_of(model.name)
    for line in figure_lines(entry) if entry else ():
        write_line(line)


def _print_stored(name: str) -> bool:
    """Print the card of a model in the user's folder; return whether there is one."""
    from samserve.models.repository import discover_each

    bundles, problems = discover_each(folder())
    for bundle in bundles:
        if bundle.info.name == name:
            _print_card(bundle.info, bundle.info.card)
            write_note(f"it is in {folder()}, and not served with these settings")
            return True
    if name in problems:
        write_note(f"{folder()}: {problems[name]}")
    return False


def _print_published(name: str) -> bool:
    """Print the catalog's entry of a model; return whether there is one."""
    entry = entry_of(name)
    if entry is None:
        return False
    write_line(f"model: {entry.name}")
    write_line(f"description: {entry.description}")
    for line in (source_line(entry), f"license: {entry.license}", f"page: {entry.page}"):
        write_line(line)
    for line in (*figure_lines(entry), *cost_lines(entry)):
        write_line(line)
    write_note(f"it is not stored here; get it with: samserve models pull {name}")
    return True


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
