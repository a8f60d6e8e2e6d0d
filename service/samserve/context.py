"""What every call carries with it: who asks, until when, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from samserve.errors import DeadlineExceeded
from samserve.security.principal import ANYBODY, UNLIMITED, Allowance, Principal
from samserve.stages import StageClock


class Priority(IntEnum):
    """Order of work that waits for the engine; the smaller goes first (Triton's levels)."""

    INTERACTIVE = 1
    BULK = 2


@dataclass(slots=True)
class CallFacts:
    """What is learnt about a call on its way, for metrics, logs and traces.

    ``model`` is the name of a served model, ``cache`` where the embedding was found: ``memory``,
    ``shared``, ``miss``, ``joined`` or ``pending``.  ``filters`` are AutoMask's: name, candidates
    that came, and candidates that were kept.
    """

    model: str = ""
    cache: str = ""
    prompts: int = 0
    masks: int = 0
    filters: tuple[tuple[str, int, int], ...] = ()
    received_bytes: int = 0
    sent_bytes: int = 0


@dataclass(slots=True)
class RequestContext:
    """One call: its caller, absolute deadline (seconds of *now*), stage clock and priority."""

    principal: Principal = ANYBODY
    allowance: Allowance = UNLIMITED
    request_id: str = ""
    deadline: float = float("inf")
    priority: Priority = Priority.INTERACTIVE
    clock: StageClock = field(default_factory=StageClock)
    facts: CallFacts = field(default_factory=CallFacts)
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
