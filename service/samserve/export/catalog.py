"""The catalog of models that can be pulled by name, read from ``catalog.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from samserve.export.download import check_url, file_name, parse_checksum
from samserve.export.errors import ExportError
from samserve.export.sources.names import is_hub_name

VARIANTS = (
    *("vit_b", "vit_l", "vit_h", "mobile", "edgetam"),
    *(f"sam_hq_vit_{size}" for size in ("b", "l", "h", "tiny")),
    *(
        f"sam{version}_hiera_{size}"
        for version in ("2.1", "2")
        for size in ("tiny", "small", "base_plus", "large")
    ),
)
"""Values of `ExportOptions.variant`."""

_PACKAGED = Path(__file__).with_name("catalog.toml")
_SOURCES = ("url", "hub")
_REQUIRED = ("license", "page", "description")
_OPTIONAL = ("variant", "checksum")
_FIGURES = (
    *("checkpoint_mib", "model_mib", "export_memory_mib", "export_s", "served_memory_mib"),
    "tflop_per_image",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A published checkpoint.

    Either ``url`` or ``hub``, an ``OWNER/NAME`` on the Hugging Face hub, is set.  ``license`` is an
    SPDX identifier; ``page`` is the URL of the model's documentation; ``description`` is one
    printable line.  ``variant``, if set, is one of `VARIANTS`; ``checksum`` is as returned by
    `parse_checksum`, None if the publisher provides none; the hub lists those of its files.

    Figures are None if unknown: the sizes of the checkpoint and of the model exported in float32,
    the peak memory of the export, and that of a gateway with this model only, each in MiB;
    the time of the export; and the work of the image encoder in 10^12 operations.
    """

    name: str
    license: str
    page: str
    description: str
    url: str = ""
    hub: str = ""
    variant: str = ""
    checksum: str | None = None
    checkpoint_mib: float | None = None
    model_mib: float | None = None
    export_memory_mib: float | None = None
    export_s: float | None = None
    served_memory_mib: float | None = None
    tflop_per_image: float | None = None


def load(path: Path | None = None) -> dict[str, Entry]:
    """Read a catalog and return its entries by name; the default is the packaged catalog.

    Raises `ExportError`, which names the entry and the key, for invalid content.
    """
    path = path or _PACKAGED
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(f"the catalog cannot be read: {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} is not valid TOML: {error}") from error
    try:
        return {name: _entry(name, table) for name, table in tables.items()}
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error


def find(name: str, catalog: Mapping[str, Entry]) -> Entry:
    """Return the entry of a model.  Raises `ExportError`, which lists the known names."""
    if name not in catalog:
        raise ExportError(f"unknown model {name!r}; the catalog has {', '.join(catalog)}")
    return catalog[name]


def _entry(name: str, table: object) -> Entry:
    if not isinstance(table, dict):
        raise ExportError(f"{name}: expected a table")
    if missing := [key for key in _REQUIRED if key not in table]:
        raise ExportError(f"{name}.{missing[0]} is missing")
    for key, value in table.items():
        try:
            _check(key, value)
        except ExportError as error:
            raise ExportError(f"{name}.{key}: {error}") from error
    if len(table.keys() & set(_SOURCES)) != 1:
        raise ExportError(f"{name}.{' or '.join(_SOURCES)} is missing, or both are set")
    checksum = parse_checksum(table["checksum"]) if "checksum" in table else None
    return Entry(**{**table, "name": name, "checksum": checksum})


def _check(key: str, value: object) -> None:
    if key in _FIGURES:
        _check_figure(value)
        return
    if key not in _SOURCES + _REQUIRED + _OPTIONAL:
        raise ExportError("unknown key")
    if not (isinstance(value, str) and value.strip() and value.isprintable()):
        raise ExportError(f"expected one printable line, not {value!r}")
    check = _CHECKS.get(key)
    if check is not None:
        check(value)


def _check_figure(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise ExportError(f"expected a positive number, not {value!r}")


def _check_variant(value: str) -> None:
    if value not in VARIANTS:
        raise ExportError(f"expected one of {', '.join(VARIANTS)}, not {value!r}")


def _check_hub(value: str) -> None:
    if not is_hub_name(value):
        raise ExportError(f"expected OWNER/NAME, not {value!r}")


_CHECKS: Mapping[str, Callable[[str], object]] = {
    "variant": _check_variant,
    "hub": _check_hub,
    "page": check_url,
    "url": file_name,
    "checksum": parse_checksum,
}
