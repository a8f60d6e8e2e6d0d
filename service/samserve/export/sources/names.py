"""Names of models on the Hugging Face hub."""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def is_hub_name(text: str) -> bool:
    """Return whether *text* has the form ``owner/name``."""
    return _NAME.fullmatch(text) is not None
