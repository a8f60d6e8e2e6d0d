"""What every training run has in common: steps from a seed, checkpoints, averages, reports."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from samserve.tuning.losses import Result

Batch = TypeVar("Batch")
LAST = "last.pt"
"""The checkpoint from which an interrupted run continues."""


class Stateful(Protocol):
    """A part of a run that a checkpoint contains."""

    def state_dict(self) -> dict[str, Any]:
        """Return its state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Restore its state."""
        ...


class Loop(ABC, Generic[Batch]):
    """A run of training steps, which can be continued from its last checkpoint.

    A step draws its random numbers from the seed and its own number, so that a run that was
    interrupted ends with the same weights as another.  *parts* are saved by name; checkpoints are
    written into *out* at least every *save_s* seconds.
    """

    def __init__(
        self, parts: Mapping[str, Stateful], *, seed: int, device: str, out: Path, save_s: float
    ) -> None:
        self.parts, self.seed, self.device, self.out = dict(parts), seed, device, out
        self.save_s = save_s
        self.step, self.seconds = 0, 0.0
        self._totals: dict[str, list[float]] = {}

    @abstractmethod
    def train_step(self, batch: Batch) -> None:
        """Run one step of the optimiser."""

    def after_step(self) -> None:
        """Do what follows a step, such as a report; `step` is the number of finished steps."""

    def facts(self) -> dict[str, Any]:
        """Return further values of a checkpoint."""
        return {}

    def restore_facts(self, state: Mapping[str, Any]) -> None:
        """Restore the values of `facts`."""

    def run(self, batches: Iterable[Batch], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Train on the batches of the remaining steps, and save."""
        saved = previous = clock()
        for batch in batches:
            # Seeded by step, so that a resumed run draws the same numbers.
            torch.manual_seed(self.seed * 1_000_003 + self.step)
            self.train_step(batch)
            self.step += 1
            now = clock()
            self.seconds, previous = self.seconds + now - previous, now
            self.after_step()
            if now - saved >= self.save_s:
                self.save()
                saved = now
        self.save()

    def save(self, name: str = LAST) -> None:
        """Write a checkpoint atomically."""
        state = {each: part.state_dict() for each, part in self.parts.items()}
        partial = self.out / f"{name}.partial"
        torch.save({**state, "step": self.step, "seconds": self.seconds, **self.facts()}, partial)
        partial.replace(self.out / name)

    def resume(self, checkpoint: Path) -> None:
        """Continue from a checkpoint."""
        state = torch.load(checkpoint, map_location=self.device, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]
        self.restore_facts(state)

    def add(self, name: str, value: float, count: int = 1) -> None:
        """Add the sum of *count* values to a measure."""
        total = self._totals.setdefault(name, [0.0, 0.0])
        total[0] += value
        total[1] += count

    def add_result(self, name: str, result: Result, rows: Any = slice(None)) -> None:
        """Add the IoUs of some rows of a round's result: of token 0, and of the best of 1 to 3."""
        measures = {"single": result.target_iou[:, 0], "best": result.iou[:, 1:].amax(1)}
        for token, values in measures.items():
            chosen = values[rows]
            self.add(f"{name} {token}", float(chosen.sum()), len(chosen))

    def take_means(self) -> dict[str, float]:
        """Return the mean of every measure since the last call."""
        means = {name: total / max(1.0, count) for name, (total, count) in self._totals.items()}
        self._totals.clear()
        return means


@torch.no_grad()
def update_average(average: Stateful, model: Stateful, step: int, decay: float) -> None:
    """Update the exponential average of a model's weights, faster at first."""
    decay = min(decay, (1 + step) / (10 + step))
    averaged, current = average.state_dict(), model.state_dict()
    counters = [name for name, value in averaged.items() if not value.is_floating_point()]
    for name in counters:
        averaged.pop(name).copy_(current.pop(name))
    torch._foreach_lerp_(list(averaged.values()), list(current.values()), 1 - decay)
