"""`samserve models catalog`, and what its entries say about a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from samserve.cli.export_options import export_errors
from samserve.cli.options import existing_file
from samserve.cli.terminal import print_table

if TYPE_CHECKING:
    from samserve.export.catalog import Entry

CatalogFile = Annotated[
    Path | None,
    existing_file("Catalog file to use instead of the packaged one.", "--catalog"),
]

_COLUMNS = ("name", "checksum", "license", "download", "memory", "work per image", "description")


def catalog(catalog: CatalogFile = None) -> None:
    """List the models that `samserve models pull` can download.

    `memory` is that of a server with this model only, `work per image` that of the image encoder.
    A dash is an unknown value. `samserve models show NAME` has more.
    """
    rows = [
        (
            entry.name,
            _checksum(entry),
            entry.license,
            _amount(entry.checkpoint_mib, "MiB"),
            _amount(entry.served_memory_mib, "MiB"),
            _amount(entry.tflop_per_image, "TFLOP"),
            entry.description,
        )
        for entry in _entries(catalog).values()
    ]
    print_table([_COLUMNS, *rows])


def find_entry(name: str, catalog: Path | None) -> Entry:
    """Return the entry of a model.  Raises `CommandError`."""
    with export_errors():
        from samserve.export.catalog import find

        return find(name, _entries(catalog))


def entry_of(name: str) -> Entry | None:
    """Return the packaged entry of a model, None if there is none or the export is missing."""
    try:
        from samserve.export.catalog import load
    except ModuleNotFoundError:
        return None
    return load().get(name)


def source_line(entry: Entry) -> str:
    """Return where a checkpoint comes from."""
    source = f"{entry.hub} on the Hugging Face hub" if entry.hub else entry.url
    return f"source: {source}"


def figure_lines(entry: Entry) -> list[str]:
    """Return what a model costs, one line for each known figure."""
    figures = {
        "work per image": _amount(entry.tflop_per_image, "TFLOP"),
        "memory of a server with this model only": _amount(entry.served_memory_mib, "MiB"),
    }
    return [f"{name}: {text}" for name, text in figures.items() if text != "-"]


def cost_lines(entry: Entry) -> list[str]:
    """Return what pulling a model costs, one line for each known figure."""
    seconds = "" if entry.export_s is None else f"about {entry.export_s:g} s on two CPU cores"
    figures = {
        "download": _amount(entry.checkpoint_mib, "MiB"),
        "disk for the model": _amount(entry.model_mib, "MiB"),
        "memory of the export": _amount(entry.export_memory_mib, "MiB"),
        "time of the export": seconds or "-",
    }
    return [f"{name}: {text}" for name, text in figures.items() if text != "-"]


def _entries(path: Path | None) -> dict[str, Entry]:
    with export_errors():
        from samserve.export.catalog import load

        return load(path)


def _checksum(entry: Entry) -> str:
    if entry.hub:
        return "from the hub"
    return "yes" if entry.checksum else "requires --sha256"


def _amount(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:g} {unit}"
