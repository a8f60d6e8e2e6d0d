"""The context of a call: its caller, its deadline and its stage clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from samserve.errors import DeadlineExceeded
from samserve.security.principal import ANONYMOUS, UNLIMITED, Allowance, Principal
from samserve.stages import StageClock
from samserve.types.models import ModelInfo


class Priority(IntEnum):
    """Priority of work that waits for the engine; smaller runs first (Triton's levels)."""

    INTERACTIVE = 1
    BULK = 2


@dataclass(slots=True)
class CallFacts:
    """Attributes of a call that are collected while it runs, for metrics, logs and traces.

    ``model`` is the name of a served model, ``version`` the first digits of its digest, ``cache``
    where the embedding was found: ``local``, ``shared``, ``miss``, ``joined`` or ``pending``.
    ``filters`` are AutoMask's: name, number of candidates in, and number of candidates out.
    """

    model: str = ""
    version: str = ""
    cache: str = ""
    prompts: int = 0
    masks: int = 0
    filters: tuple[tuple[str, int, int], ...] = ()
    received_bytes: int = 0
    sent_bytes: int = 0

    def of_model(self, model: ModelInfo) -> None:
        """Set the model of the call and its version."""
        self.model, self.version = model.name, model.version


@dataclass(slots=True)
class RequestContext:
    """One call: its caller, absolute deadline (seconds of *now*), stage clock and priority."""

    principal: Principal = ANONYMOUS
    allowance: Allowance = UNLIMITED
    request_id: str = ""
    deadline: float = float("inf")
    priority: Priority = Priority.INTERACTIVE
    clock: StageClock = field(default_factory=StageClock)
    facts: CallFacts = field(default_factory=CallFacts)
    now: Callable[[], float] = time.monotonic
    weights: dict[str, Any] = field(default_factory=dict)
    """By model, the version that the call began with: the engine's own object (`Engine.using`)."""

    @property
    def tenant(self) -> str:
        """The tenant that owns the embeddings of the call and is scheduled for its work."""
        return self.principal.tenant

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.deadline - self.now()

    def check_deadline(self) -> None:
        """Raise `DeadlineExceeded` if the deadline has passed."""
        if self.remaining_s <= 0:
            raise deadline_exceeded(self.clock.current)


def deadline_exceeded(stage: str) -> DeadlineExceeded:
    """Build the error for a call whose deadline passed in *stage*."""
    return DeadlineExceeded(f"deadline exceeded during {stage}", metadata={"stage": stage})
