"""What every call carries with it: who asks, until when, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum

from samserve.errors import DeadlineExceeded
from samserve.principal import ANYBODY, UNLIMITED, Allowance, Principal


class Priority(IntEnum):
    """Order of work that waits for the engine; the smaller goes first (Triton's levels)."""

    INTERACTIVE = 1
    BULK = 2


class StageClock:
    """Wall-clock seconds by stage; stages may overlap and repeat, repeats add up."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seconds: dict[str, float] = {}
        self.current = "receive"

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge the time of the block to *name*, also when it fails."""
        self.current = name
        started = self._now()
        try:
            yield
        finally:
            self.add(name, self._now() - started)

    def add(self, name: str, seconds: float) -> None:
        """Charge *seconds* to *name*."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def merge(self, other: StageClock) -> None:
        """Charge everything that *other* measured."""
        for name, seconds in other._seconds.items():
            self.add(name, seconds)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage, in the order in which the stages first ended."""
        return dict(self._seconds)


@dataclass(slots=True)
class RequestContext:
    """One call: its caller, absolute deadline (seconds of *now*), stage clock and priority."""

    principal: Principal = ANYBODY
    allowance: Allowance = UNLIMITED
    request_id: str = ""
    deadline: float = float("inf")
    priority: Priority = Priority.INTERACTIVE
    clock: StageClock = field(default_factory=StageClock)
    now: Callable[[], float] = time.monotonic

    @property
    def tenant(self) -> str:
        """Whose embeddings the call sees, and whose turn its work waits for."""
        return self.principal.tenant

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.deadline - self.now()

    def check_deadline(self) -> None:
        """Raise `DeadlineExceeded` if the time is over."""
        if self.remaining_s <= 0:
            raise deadline_exceeded(self.clock.current)


def deadline_exceeded(stage: str) -> DeadlineExceeded:
    """Build the error for a call whose time ended in *stage*."""
    return DeadlineExceeded(f"deadline exceeded during {stage}", metadata={"stage": stage})
