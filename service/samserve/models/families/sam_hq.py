"""The rules of SAM-HQ (2023): SAM 1 with an additional mask token of higher quality."""

from __future__ import annotations

from collections.abc import Sequence

from samserve.models.families.base import Capabilities, MaskChoice
from samserve.models.families.sam1 import Sam1
from samserve.types import DynamicMultimask, FloatArray, HqMode, MaskSelection, Multimask

HQ_TOKEN = 4


class SamHq(Sam1):
    """The rules of SAM-HQ where they differ; sources are files of segment-anything-hq 0.3."""

    name = "sam_hq"
    capabilities = Capabilities(points=True, boxes=True, masks=True, automask=True, hq_mode=True)
    mask_tokens = 5

    def masks_per_prompt(self, selection: MaskSelection) -> int:
        """Return the largest number of masks that are returned for a prompt."""
        return super().masks_per_prompt(selection) if selection.hq_mode is HqMode.OFF else 1

    def best_choice(self, predicted_iou: FloatArray) -> MaskChoice:
        """Return the sum of the best multimask output and token 4."""
        best = self.best_multimask(predicted_iou)
        return MaskChoice(HQ_TOKEN, best, (best, HQ_TOKEN))

    def choose(
        self,
        selection: MaskSelection,
        labels: FloatArray,
        predicted_iou: FloatArray,
        low_res_logits: FloatArray,
        dynamic: DynamicMultimask | None,
    ) -> Sequence[MaskChoice]:
        """Choose one plain mask, and add the mask of token 4 or replace it::

            hq_mode OFF          the plain masks, as SAM 1 does
            ADDED (the default)  the sum with the plain mask
            ONLY                 token 4 alone

        The plain mask is that of SAM 1; for ALL it is the one of 1, 2, 3 with the best predicted
        IoU.  The predicted IoU is that of the plain mask in any mode.  Source:
        modeling/mask_decoder_hq.py, ``forward``; transformers returns three masks instead.
        """
        plain = super().choose(selection, labels, predicted_iou, low_res_logits, dynamic)
        if selection.hq_mode is HqMode.OFF:
            return plain
        if selection.multimask is Multimask.ALL:
            plain = [MaskChoice.of(self.best_multimask(predicted_iou))]
        (choice,) = plain
        tokens = (HQ_TOKEN,) if selection.hq_mode is HqMode.ONLY else (*choice.tokens, HQ_TOKEN)
        return [MaskChoice(HQ_TOKEN, choice.iou_token, tokens)]
