"""One test for many cases, whose failure names every failed case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest


def check_all(check: Callable[[Any], None], cases: Mapping[str, Any]) -> None:
    """Call *check* with every case; raise AssertionError with the names of the failed ones."""
    failures = []
    for name, case in cases.items():
        try:
            check(case)
        # The second is what `pytest.raises` raises.
        except (Exception, pytest.fail.Exception) as error:
            failures.append(f"{name}: {type(error).__name__}: {error}")
    assert cases, "there are no cases"
    assert not failures, "\n".join(failures)
