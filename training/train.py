"""Train ``sam_tiny`` from scratch on synthetic scenes.

``python -m training.train --out runs/x [--steps 8000] [--seed 0] [--resume]``
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from samserve.export.tiny.layers import channels_last
from samserve.tuning.interactive import Round, rounds
from samserve.tuning.loop import Loop, update_average
from samserve.tuning.losses import prompt_loss
from torch import nn

from training.data import Batch, batches
from training.dense import DenseHeads
from training.iou_fit import IouFit
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


class Trainer(Loop[Batch]):
    """Model, averaged model, optimiser, and the state that is needed to continue a run."""

    def __init__(self, plan: Plan, out: Path) -> None:
        torch.manual_seed(plan.schedule.seed)
        self.plan = plan
        self.model = channels_last(SamTiny()).to(plan.device)
        self.average = copy.deepcopy(self.model).eval()
        self.dense = channels_last(DenseHeads()).to(plan.device)
        self.trainable = nn.ModuleDict({"model": self.model, "dense": self.dense})
        self.optimiser = Optimiser(self.trainable)
        super().__init__(
            {
                "model": self.model,
                "dense": self.dense,
                "average": self.average,
                "optimiser": self.optimiser,
            },
            seed=plan.schedule.seed,
            device=plan.device,
            out=out,
            save_s=CHECKPOINT_SECONDS,
        )

    def train(self) -> None:
        """Train to the last step."""
        steps = range(self.step, self.plan.schedule.steps)
        self.run(batches(self.plan.schedule, steps, self.plan.workers))

    def train_step(self, batch: Batch) -> None:
        """Run one optimiser step: a first round on all prompts, more rounds on some."""
        if self.step == self.plan.schedule.cooldown_start:
            self.save(STATIONARY_END)
        batch = batch.to(self.plan.device)
        self.trainable.zero_grad(set_to_none=True)
        with torch.autocast(self.plan.device, torch.bfloat16):
            embedding = self.model.encoder(batch.image, batch.size)
            dense = self.dense(self.model.decoder, embedding, batch.levels)
            decode = partial(self.model.decoder, embedding)
            all_rounds = list(rounds(decode, batch.prompts, prompt_loss))
            loss = sum((round_.weight * round_.result.loss for round_ in all_rounds), dense)
        self.add("dense", float(dense.detach()))
        for round_ in all_rounds:
            self._record(round_)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trainable.parameters(), 1.0)
        if torch.isfinite(norm):
            self.optimiser.step(self.plan.schedule.rate(self.step))
        update_average(self.average, self.model, self.step, AVERAGING)

    def after_step(self) -> None:
        """Print the measures at times."""
        if self.step % REPORT_STEPS == 0:
            figures = [f"{name} {value:.3f}" for name, value in self.take_means().items()]
            done = f"step {self.step} of {self.plan.schedule.steps}"
            print(f"{done}, minute {self.seconds / 60:.1f}: " + ", ".join(figures), flush=True)

    def _record(self, round_: Round) -> None:
        """Add a round's measures to the running totals."""
        name = "first" if round_.boxed is not None else "refined"
        self.add(f"{name} loss", float(round_.result.loss.detach()))
        if round_.boxed is None:
            self.add_result(name, round_.result)
        else:
            self.add_result(name, round_.result, ~round_.boxed)
            self.add_result(f"{name} box", round_.result, round_.boxed)


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
    trainer.train()
    fit = IouFit(trainer.average, schedule, options.device)
    fit.run(options.workers)
    fit.save(options.out / "final.pt")


if __name__ == "__main__":
    main()
