"""The number of Hypothesis examples: few in `make test`, five times as many in `make test-all`.

``pytest --hypothesis-profile thorough`` selects the larger number.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings

_QUICK, _THOROUGH = 40, 200


def register_profiles() -> None:
    """Register both profiles, and load the quick one unless the command line names another."""
    settings.register_profile("quick", max_examples=_QUICK, deadline=None)
    settings.register_profile("thorough", max_examples=_THOROUGH, deadline=None)
    settings.load_profile("quick")


def examples(count: int, **others: Any) -> settings:
    """Return settings for *count* examples in the thorough profile, a fifth in the quick one."""
    ratio = settings.default.max_examples / _THOROUGH
    return settings(max_examples=max(1, round(count * ratio)), deadline=None, **others)
