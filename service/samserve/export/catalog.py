"""The catalog of models that can be pulled by name, read from ``catalog.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from samserve.export.download import check_url, file_name, parse_checksum
from samserve.export.errors import ExportError

VARIANTS = ("vit_b", "vit_l", "vit_h", "mobile")

_PACKAGED = Path(__file__).with_name("catalog.toml")
_REQUIRED = ("url", "variant", "license", "page", "description")
_OPTIONAL = ("checksum",)


@dataclass(frozen=True, slots=True)
class Entry:
    """A published checkpoint.

    ``variant`` is one of `VARIANTS`; ``license`` is an SPDX identifier; ``page`` is the URL of the
    model's documentation; ``description`` is one printable line.  ``checksum`` is as returned by
    `parse_checksum`, None if the publisher provides none.
    """

    name: str
    url: str
    variant: str
    license: str
    page: str
    description: str
    checksum: str | None


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
    checksum = parse_checksum(table["checksum"]) if "checksum" in table else None
    return Entry(name=name, checksum=checksum, **{key: table[key] for key in _REQUIRED})


def _check(key: str, value: object) -> None:
    if key not in _REQUIRED + _OPTIONAL:
        raise ExportError("unknown key")
    if not (isinstance(value, str) and value.strip() and value.isprintable()):
        raise ExportError(f"expected one printable line, not {value!r}")
    if key == "variant" and value not in VARIANTS:
        raise ExportError(f"expected one of {', '.join(VARIANTS)}, not {value!r}")
    if key in ("url", "page"):
        check_url(value)
    if key == "url":
        file_name(value)
    if key == "checksum":
        parse_checksum(value)
