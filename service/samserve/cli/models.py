"""`samserve models`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from samserve.cli.options import Assignments, ConfigFile, Server
from samserve.cli.terminal import STDOUT, say, write_json

if TYPE_CHECKING:
    from samserve.client import Catalog, Model

_COLUMNS = ("name", "family", "side", "embedding", "takes", "transport", "digest", "description")


def models(
    as_json: Annotated[
        bool, typer.Option("--json", help="Everything, limits and defaults too, as JSON.")
    ] = False,
    server: Server = "",
    config: ConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """List the served models; * marks the default."""
    from samserve.cli import session

    async def work() -> Catalog:
        async with session.connected(session.Endpoint(server, config, assignments)) as client:
            return await client.models()

    catalog = session.run(work())
    if as_json:
        write_json(STDOUT, asdict(catalog))
        return
    _print_table(catalog)


def _print_table(catalog: Catalog) -> None:
    """Write columns as wide as they need: no cell is ever broken or shortened."""
    rows = [_COLUMNS, *(_row(model) for model in catalog.models)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say("  ".join(cells).rstrip())


def _row(model: Model) -> tuple[str, ...]:
    return (
        f"{model.name} *" if model.default else model.name,
        model.family,
        str(model.image_side),
        f"{model.embedding_bytes / (1 << 20):.1f} MiB",
        ",".join(model.capabilities),
        model.transport,
        model.digest[:12],
        model.description,
    )
