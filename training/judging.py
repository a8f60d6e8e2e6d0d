"""After a run: fit the predicted IoU to the finished masks.

The averaged weights answer otherwise than those that were trained, and the last scenes are those
that count. So everything but `MaskJudge` is frozen, which makes a step cheap.
"""

from __future__ import annotations

from pathlib import Path

import torch

from training.asking import rounds
from training.data import Batch, batches
from training.losses import Meanings, Result, iou_loss
from training.model import SamTiny
from training.schedule import Schedule

RATE = 1.5e-3
WARMUP_STEPS = 50
ABSOLUTE = 1.0
"""The absolute error counts more than while masks are learnt: it is what is reported."""
REPORT_STEPS = 50


class Judging:
    """A finished model whose head for predicted IoU is made anew."""

    def __init__(self, model: SamTiny, schedule: Schedule, device: str = "cpu") -> None:
        torch.manual_seed(schedule.seed)
        self.schedule, self.device = schedule, device
        self.model = SamTiny(judged=True).to(device)
        masks = {
            name: value
            for name, value in model.state_dict().items()
            if not name.startswith("decoder.iou_head.")
        }
        self.model.load_state_dict(masks, strict=False)
        self.model.eval().requires_grad_(False)
        self.head = self.model.decoder.iou_head.requires_grad_(True)
        self.optimiser = torch.optim.AdamW(self.head.parameters(), RATE, weight_decay=0.01)
        self.error, self.count = 0.0, 0

    def run(self, workers: int) -> None:
        """Fit for all steps that the schedule has after its last one."""
        steps = range(self.schedule.steps, self.schedule.steps + self.schedule.judging_steps)
        for step, batch in enumerate(batches(self.schedule, steps, workers)):
            self._learn(step, batch.to(self.device))
            if (step + 1) % REPORT_STEPS == 0:
                self._report(step + 1)

    def save(self, path: Path) -> None:
        """Write what `training.export` takes."""
        partial = path.with_suffix(".partial")
        torch.save({"average": self.model.state_dict()}, partial)
        partial.replace(path)

    def _learn(self, step: int, batch: Batch) -> None:
        torch.manual_seed(self.schedule.seed * 1_000_003 + self.schedule.steps + step)
        share = min((step + 1) / WARMUP_STEPS, 1 - step / self.schedule.judging_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = RATE * share
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16):
            embedding = self.model.encoder(batch.image, batch.size)
            asked = rounds(self.model.decoder, embedding, batch, self._score)
            losses = [one.weight * one.result.loss.mean() for one in asked]
        torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
        self.optimiser.step()

    def _score(self, logits: torch.Tensor, predicted: torch.Tensor, meant: Meanings) -> Result:
        result = iou_loss(logits, predicted, meant, ABSOLUTE)
        self.error += float((predicted.detach().float() - result.iou).abs().sum())
        self.count += predicted.numel()
        return result

    def _report(self, done: int) -> None:
        error = self.error / self.count
        print(
            f"judging {done} of {self.schedule.judging_steps}: mean error {error:.3f}", flush=True
        )
        self.error, self.count = 0.0, 0
