"""How to install the optional dependencies of the package."""

from __future__ import annotations


def how_to_install(extra: str) -> str:
    """Return the commands that install an extra: two ways, because the package is in no index."""
    return (
        f"pip install '.[{extra}]' in a clone of samserve, "
        f"or pip install 'FILE.whl[{extra}]' with the file of its wheel"
    )
