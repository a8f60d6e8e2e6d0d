"""Train ``sam_tiny`` from scratch on synthetic scenes.

``python -m training.train --out runs/x [--steps 8000] [--seed 0] [--resume]``
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from training.data import Batch, batches
from training.dense import DenseHeads
from training.interactive import rounds
from training.iou_fit import IouFit
from training.layers import channels_last
from training.losses import Result, prompt_loss
from training.model import SamTiny
from training.optimiser import Optimiser
from training.schedule import Schedule

STEPS = 8000
AVERAGING = 0.999
STATIONARY_END = "stationary.pt"
"""Checkpoint at the start of the cool-down, from which a longer run can continue."""
CHECKPOINT_SECONDS = 150.0
REPORT_STEPS = 50


@dataclass(frozen=True)
class Plan:
    """Schedule and resources of a run."""

    schedule: Schedule
    workers: int
    device: str = "cpu"


class Trainer:
    """Model, averaged model, optimiser, and the state that is needed to continue a run."""

    def __init__(self, plan: Plan, out: Path) -> None:
        torch.manual_seed(plan.schedule.seed)
        self.plan, self.out = plan, out
        self.model = channels_last(SamTiny()).to(plan.device)
        self.average = copy.deepcopy(self.model).eval()
        self.dense = channels_last(DenseHeads()).to(plan.device)
        self.trainable = nn.ModuleDict({"model": self.model, "dense": self.dense})
        self.optimiser = Optimiser(self.trainable)
        self.step, self.seconds = 0, 0.0
        self.totals: dict[str, float] = {}

    def save(self, name: str = "last.pt") -> None:
        """Write a checkpoint atomically."""
        state = {
            "model": self.model.state_dict(),
            "dense": self.dense.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self.out / f"{name}.partial"
        torch.save(state, partial)
        partial.replace(self.out / name)

    def resume(self, checkpoint: Path) -> None:
        """Continue from a checkpoint."""
        state = torch.load(checkpoint, map_location=self.plan.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.dense.load_state_dict(state["dense"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]

    def run(self) -> None:
        """Train to the last step."""
        schedule, saved, previous = self.plan.schedule, time.monotonic(), time.monotonic()
        for batch in batches(schedule, range(self.step, schedule.steps), self.plan.workers):
            if self.step == schedule.cooldown_start:
                self.save(STATIONARY_END)
            self._train_step(batch.to(self.plan.device))
            self.step += 1
            now = time.monotonic()
            self.seconds, previous = self.seconds + now - previous, now
            if self.step % REPORT_STEPS == 0:
                self._report()
            if now - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = now
        self.save()

    def _train_step(self, batch: Batch) -> None:
        """Run one optimiser step: a first round on all prompts, more rounds on some."""
        # Rounds draw random numbers; seeded by step, so that a resumed run draws the same ones.
        torch.manual_seed(self.plan.schedule.seed * 1_000_003 + self.step)
        self.trainable.zero_grad(set_to_none=True)
        with torch.autocast(self.plan.device, torch.bfloat16):
            embedding = self.model.encoder(batch.image, batch.size)
            dense = self.dense(self.model.decoder, embedding, batch.levels)
            all_rounds = list(rounds(self.model.decoder, embedding, batch, prompt_loss))
            loss = sum((round_.weight * round_.result.loss for round_ in all_rounds), dense)
        self._add("dense", float(dense.detach()), 1)
        for round_ in all_rounds:
            self._record_round(
                "refined" if round_.boxed is None else "first", round_.result, round_.boxed
            )
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trainable.parameters(), 1.0)
        if torch.isfinite(norm):
            self.optimiser.step(self.plan.schedule.rate(self.step))
        self._update_average()

    @torch.no_grad()
    def _update_average(self) -> None:
        """Update the exponential average of the weights, faster at first."""
        decay = min(AVERAGING, (1 + self.step) / (10 + self.step))
        averaged, current = self.average.state_dict(), self.model.state_dict()
        counters = [name for name, value in averaged.items() if not value.is_floating_point()]
        for name in counters:
            averaged.pop(name).copy_(current.pop(name))
        torch._foreach_lerp_(list(averaged.values()), list(current.values()), 1 - decay)

    def _record_round(self, name: str, result: Result, boxed: Tensor | None) -> None:
        """Add a round's measures to the running totals."""
        tokens = {"single": result.target_iou[:, 0], "best": result.iou[:, 1:].amax(1)}
        groups = {"": slice(None)} if boxed is None else {"": ~boxed, " box": boxed}
        self._add(f"{name} loss", float(result.loss.detach()), 1)
        for suffix, group in groups.items():
            for token, values in tokens.items():
                chosen = values[group]
                self._add(f"{name}{suffix} {token}", float(chosen.sum()), len(chosen))

    def _add(self, name: str, value: float, count: int) -> None:
        self.totals[name] = self.totals.get(name, 0.0) + value
        self.totals[name + "#"] = self.totals.get(name + "#", 0.0) + count

    def _report(self) -> None:
        figures = [
            f"{name} {value / max(1.0, self.totals[name + '#']):.3f}"
            for name, value in self.totals.items()
            if not name.endswith("#")
        ]
        done = f"step {self.step} of {self.plan.schedule.steps}, minute {self.seconds / 60:.1f}: "
        print(done + ", ".join(figures), flush=True)
        self.totals.clear()


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--steps", type=int, default=STEPS, help="total number of training steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that generate scenes")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--resume", action="store_true", help="continue from OUT/last.pt")
    options = parser.parse_args()
    schedule = Schedule(options.steps, options.seed)
    trainer = Trainer(Plan(schedule, options.workers, options.device), options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.resume:
        trainer.resume(options.out / "last.pt")
    trainer.run()
    fit = IouFit(trainer.average, schedule, options.device)
    fit.run(options.workers)
    fit.save(options.out / "final.pt")


if __name__ == "__main__":
    main()
