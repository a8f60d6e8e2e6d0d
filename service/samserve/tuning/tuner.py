"""The training run of `samserve tune`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samserve.tuning.adapters import copy_sharing_frozen
from samserve.tuning.batches import Batches, Micro
from samserve.tuning.interactive import PromptBatch, Round, rounds
from samserve.tuning.loop import LAST, Loop, Stateful, update_average
from samserve.tuning.losses import prompt_loss
from samserve.tuning.tunable import TrainedWeights, Tunable

AVERAGING = 0.99
CALIBRATION_STEPS = 10
"""Steps whose time decides how many there are in a number of minutes."""
WARMUP_STEPS, COOLDOWN_RATIO = 20, 0.3
REPORT_STEPS = 10
SAVE_S = 30.0
WEIGHT_DECAY = 0.01
LOSSES_FILE = "losses.jsonl"


@dataclass(frozen=True, slots=True)
class Plan:
    """Length, seed and rate of a run: *steps*, or as many as there are in *minutes*.

    How many that are is measured once and part of the checkpoint, so that a run that is resumed
    has as many as another.  ``adapter_rank`` is that of the adapters of the image encoder, 0 for
    none.
    """

    steps: int | None
    minutes: float | None
    seed: int
    rate: float
    device: str = "cpu"
    adapter_rank: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Finished steps, all of them if that is known, seconds so far, and means of measures."""

    step: int
    steps: int | None
    seconds: float
    measures: Mapping[str, float]

    @property
    def seconds_left(self) -> float | None:
        """Return the time that the other steps will take; None if unknown."""
        return None if self.steps is None else self.seconds / self.step * (self.steps - self.step)


class Tuner(Loop[list[Micro]]):
    """Trains a decoder, and the adapters of an image encoder if it has some."""

    def __init__(
        self,
        tunable: Tunable,
        plan: Plan,
        out: Path,
        report: Callable[[Progress], None] = lambda progress: None,
        save_s: float = SAVE_S,
    ) -> None:
        self.decoder, self.plan, self.report = tunable.decoder, plan, report
        self.module = tunable.networks.to(plan.device)
        self.average = copy_sharing_frozen(self.module)
        self._trained, self._averaged = TrainedWeights(self.module), TrainedWeights(self.average)
        self.weights = list(self._trained.by_name.values())
        self.optimiser = torch.optim.AdamW(self.weights, plan.rate, weight_decay=WEIGHT_DECAY)
        self.steps = plan.steps
        parts: dict[str, Stateful] = {
            "module": self._trained,
            "average": self._averaged,
            "optimiser": self.optimiser,
        }
        super().__init__(parts, seed=plan.seed, device=plan.device, out=out, save_s=save_s)

    def tune(self, batches: Batches, clock: Callable[[], float] = time.monotonic) -> None:
        """Train to the last step."""
        # Modules of the export make constants in their computation, on the default device.
        with torch.device(self.plan.device):
            self.run(self._remaining(batches), clock=clock)

    def _remaining(self, batches: Batches) -> Iterator[list[Micro]]:
        while self.steps is None or self.step < self.steps:
            yield batches.of_step(self.step)

    def train_step(self, batch: list[Micro]) -> None:
        """Run one step of the optimiser."""
        self.optimiser.zero_grad(set_to_none=True)
        for micro in batch:
            with self._embedding(micro) as embedding:
                for round_ in self._rounds(embedding, micro.prompts):
                    # Logits that are fed back have no gradient: each round is a graph of its own.
                    (round_.weight / len(batch) * round_.result.loss).backward()
                    self._record(round_)
        norm = torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        if torch.isfinite(norm):
            for group in self.optimiser.param_groups:
                group["lr"] = self.plan.rate * self._scale()
            self.optimiser.step()
        update_average(self._averaged, self._trained, self.step, AVERAGING)

    @contextmanager
    def _embedding(self, micro: Micro) -> Iterator[list[Tensor]]:
        """Yield the embedding of an image, then continue its gradients into the encoder.

        The encoder runs once for all rounds.
        """
        tensors = self.module.encoder(*(each.to(self.plan.device) for each in micro.inputs))
        embedding = [each.detach().requires_grad_(each.requires_grad) for each in tensors]
        yield embedding
        pairs = zip(tensors, embedding, strict=True)
        used = [(one, other.grad) for one, other in pairs if other.grad is not None]
        if used:
            torch.autograd.backward([one for one, _ in used], [gradient for _, gradient in used])

    def _rounds(self, embedding: list[Tensor], prompts: PromptBatch) -> Iterator[Round]:
        decoder = self.decoder
        decode = partial(self._decode, embedding)
        score = partial(prompt_loss, recipe=decoder.recipe)
        return rounds(decode, prompts.to(self.plan.device), score, decoder.interaction)

    def _decode(
        self,
        embedding: list[Tensor],
        coords: Tensor,
        labels: Tensor,
        masks: Tensor,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.plan.device, torch.bfloat16, enabled=self.decoder.autocast):
            return self.decoder.decode(self.module.decoder, embedding, (coords, labels, masks))

    def _scale(self) -> float:
        """Return the learning rate of this step, relative to the highest."""
        warmup = min(1.0, (self.step + 1) / WARMUP_STEPS)
        if self.steps is None:
            return warmup
        cooldown = (self.steps - self.step) / max(1.0, COOLDOWN_RATIO * self.steps)
        return warmup * min(1.0, cooldown)

    def _record(self, round_: Round) -> None:
        name = "first" if round_.boxed is not None else "corrected"
        self.add(f"{name} loss", float(round_.result.loss.detach()))
        self.add(f"{name} IoU", float(round_.result.target_iou[:, 0].mean()))

    def after_step(self) -> None:
        """Decide the number of steps once, and report at times."""
        if self.steps is None and self.step >= CALIBRATION_STEPS:
            assert self.plan.minutes is not None
            wanted = round(60 * self.plan.minutes / (self.seconds / self.step))
            self.steps = max(self.step + 1, wanted)
        if self.step % REPORT_STEPS == 0 or self.step == self.steps:
            measures = self.take_means()
            line = {"step": self.step, **measures}
            with (self.out / LOSSES_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.report(Progress(self.step, self.steps, self.seconds, measures))

    def facts(self) -> dict[str, Any]:
        """See `Loop.facts`."""
        return {"steps": self.steps, "totals": self._totals}

    def restore_facts(self, state: Mapping[str, Any]) -> None:
        """See `Loop.restore_facts`."""
        self.steps, self._totals = state["steps"], state["totals"]
        _truncate(self.out / LOSSES_FILE, self.step)

    def continue_run(self) -> None:
        """Continue from the last checkpoint in the folder, if there is one."""
        if (self.out / LAST).exists():
            self.resume(self.out / LAST)


def read_losses(folder: Path) -> list[dict[str, float]]:
    """Return the measures of a run, a mapping for each report."""
    path = folder / LOSSES_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def _truncate(path: Path, step: int) -> None:
    """Drop what a killed run reported after its last checkpoint."""
    kept = [line for line in read_losses(path.parent) if line["step"] <= step]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
