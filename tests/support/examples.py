"""How many examples Hypothesis tries: few in `make test`, five times as many in `make test-all`.

``pytest --hypothesis-profile thorough`` takes the larger number.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings

_QUICK, _THOROUGH = 40, 200


def register_profiles() -> None:
    """Tell Hypothesis of both, and take the quick one unless the command line names one."""
    settings.register_profile("quick", max_examples=_QUICK, deadline=None)
    settings.register_profile("thorough", max_examples=_THOROUGH, deadline=None)
    settings.load_profile("quick")


def examples(count: int, **others: Any) -> settings:
    """Try *count* examples in the thorough profile, and a fifth of them in the quick one."""
    share = settings.default.max_examples / _THOROUGH
    return settings(max_examples=max(1, round(count * share)), deadline=None, **others)
