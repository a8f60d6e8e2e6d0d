"""The number of prompts in one run of the decoder for AutoMask.

A Predict call waits for at most one such run.  So a run takes no longer than a target, however fast
or slow the model and the machine are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_WEIGHT = 0.3
"""Of the last run in the mean."""


@dataclass(slots=True, eq=False)
class RunSize:
    """Adapts the size of runs of each model to what runs have taken.

    Sizes are powers of two up to *maximum*: few different ones, since runtimes keep memory for each
    shape, and Triton batches requests of equal shapes only.  The *first* run has few prompts,
    because many could take seconds.
    """

    maximum: int
    target_s: float
    first: int = 4
    _seconds_per_prompt: dict[str, float] = field(default_factory=dict)

    def prompts(self, model: str) -> int:
        """Return the number of prompts for the next run of *model*."""
        seconds = self._seconds_per_prompt.get(model)
        wanted = self.first if seconds is None else int(self.target_s / max(seconds, 1e-9))
        return min(self.maximum, 1 << (max(wanted, 1).bit_length() - 1))

    def record(self, model: str, prompts: int, seconds: float) -> None:
        """Record a run of *model*, without the time in which it waited for others."""
        now = seconds / prompts
        before = self._seconds_per_prompt.get(model, now)
        self._seconds_per_prompt[model] = before + _WEIGHT * (now - before)
