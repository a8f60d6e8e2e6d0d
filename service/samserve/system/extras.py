"""How to install what only some uses of the package need."""

from __future__ import annotations


def how_to_install(extra: str) -> str:
    """Return the commands that install an extra; the package is in no index, thus two of them."""
    return (
        f"pip install '.[{extra}]' in a clone of samserve, "
        f"or pip install 'FILE.whl[{extra}]' with the file of its wheel"
    )
