"""After training: fit the predicted IoU to the final masks.

The averaged weights predict other masks than the trained ones, and the last kinds of scenes matter
most. Everything but `MaskIouHead` is frozen, which makes a step cheap.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from samserve.tuning.interactive import rounds
from samserve.tuning.losses import Result, ValidLevels, iou_loss

from training.data import Batch, batches
from training.model import SamTiny
from training.schedule import Schedule

RATE = 1.5e-3
WARMUP_STEPS = 50
ABSOLUTE = 1.0
"""Weight of the absolute error, larger than in mask training: it is the reported measure."""
REPORT_STEPS = 50


class IouFit:
    """A trained model with a new head for predicted IoU, which is fitted here."""

    def __init__(self, model: SamTiny, schedule: Schedule, device: str = "cpu") -> None:
        torch.manual_seed(schedule.seed)
        self.schedule, self.device = schedule, device
        self.model = SamTiny(mask_iou_head=True).to(device)
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
        """Run the schedule's steps of the IoU fit, which follow the last training step."""
        steps = range(self.schedule.steps, self.schedule.steps + self.schedule.iou_fit_steps)
        for step, batch in enumerate(batches(self.schedule, steps, workers)):
            self._train_step(step, batch.to(self.device))
            if (step + 1) % REPORT_STEPS == 0:
                self._report(step + 1)

    def save(self, path: Path) -> None:
        """Write a checkpoint for `training.export`."""
        partial = path.with_suffix(".partial")
        torch.save({"average": self.model.state_dict()}, partial)
        partial.replace(path)

    def _train_step(self, step: int, batch: Batch) -> None:
        torch.manual_seed(self.schedule.seed * 1_000_003 + self.schedule.steps + step)
        scale = min((step + 1) / WARMUP_STEPS, 1 - step / self.schedule.iou_fit_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = RATE * scale
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16):
            embedding = self.model.encoder(batch.image, batch.size)
            all_rounds = rounds(partial(self.model.decoder, embedding), batch.prompts, self._score)
            losses = [one.weight * one.result.loss.mean() for one in all_rounds]
        torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
        self.optimiser.step()

    def _score(self, logits: torch.Tensor, predicted: torch.Tensor, levels: ValidLevels) -> Result:
        result = iou_loss(logits, predicted, levels, ABSOLUTE)
        self.error += float((predicted.detach().float() - result.iou).abs().sum())
        self.count += predicted.numel()
        return result

    def _report(self, step: int) -> None:
        error = self.error / self.count
        print(
            f"IoU fit, step {step} of {self.schedule.iou_fit_steps}: mean error {error:.3f}",
            flush=True,
        )
        self.error, self.count = 0.0, 0
