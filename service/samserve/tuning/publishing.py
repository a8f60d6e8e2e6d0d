"""Writes a tuned model: the encoder as it was, and a new decoder, checked like any export."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from samserve.export import parity
from samserve.export.parity import ExportedModel, ModelOutput, ParityCase
from samserve.export.pipeline import DEFAULT_MIN_IOU
from samserve.export.staging import Staging, staging
from samserve.export.triton_repository import (
    Description,
    StagedBundle,
    check_name,
    stage_bundle,
    write_configs,
)
from samserve.models import card, families
from samserve.models.repository import Bundle
from samserve.tuning.decoders import TunableDecoder
from samserve.tuning.embeddings import Embeddings
from samserve.tuning.errors import TuningError
from samserve.tuning.examples import Example, read_pixels
from samserve.types import Parity

PARITY_IMAGES = 3
REPORT_PARAMETER = "tuning"
"""Parameter of the configuration with the report of the run, as JSON."""
_TUNED = ", tuned from "


@dataclass(frozen=True, slots=True)
class Tuned:
    """A model in a staging folder, which can be run, and published."""

    bundle: StagedBundle
    stage: Staging
    repository: Path

    @property
    def model(self) -> ExportedModel:
        """Return the model's graphs."""
        return ExportedModel(self.bundle.graphs)

    def publish(self, description: Description) -> tuple[Path, ...]:
        """Write the configurations, move the folders to the repository, and return them."""
        write_configs(self.bundle, description)
        self.stage.publish(self.bundle.folders)
        return tuple(self.repository / folder for folder in self.bundle.folders)


@contextmanager
def staged(
    repository: Path, name: str, base: Bundle[Path], decoder: TunableDecoder, module: nn.Module
) -> Iterator[Tuned]:
    """Write the graphs of a tuned model to a staging folder, which is removed at the end.

    *module* has the tuned weights.  Raises `TuningError` if the encoder's digest changes.
    """
    check_name(name)
    module = module.cpu()
    with staging(repository) as stage:
        models = {"encoder": onnx.load(base.graphs["encoder"]), "decoder": decoder.graph(module)}
        bundle = stage_bundle(stage.folder, name, models)
        if bundle.encoder_digest != base.info.encoder_digest:
            raise TuningError("the image encoder cannot be copied unchanged")
        decoder.keep(module, bundle.graphs["decoder"].parent)
        yield Tuned(bundle, stage, repository)


def check_parity(
    tuned: Tuned,
    decoder: TunableDecoder,
    module: nn.Module,
    embeddings: Embeddings,
    base: Bundle[Path],
    examples: Sequence[Example],
) -> Parity:
    """Compare the masks of the exported decoder with those in PyTorch, as the export does.

    Both get the same embeddings.  Raises `TuningError` if the check fails.
    """
    family, model = families.of(base.info), tuned.model
    cases, expected, actual = [], [], []
    for example in examples[:PARITY_IMAGES]:
        case = parity.parity_case(read_pixels(example), family, base.info)
        embedding = embeddings.of(example)
        cases.append(case)
        expected.append(_in_torch(decoder, module, embedding, case))
        arrays = {name: each.numpy() for name, each in embedding.items()}
        actual.append(model.decode_case(arrays, case))
    comparison = parity.compare(cases, expected, actual)
    failure = comparison.failure("fp32", DEFAULT_MIN_IOU)
    if failure:
        raise TuningError(f"parity check failed: {failure}")
    return comparison.figures


def _in_torch(
    decoder: TunableDecoder, module: nn.Module, embedding: Mapping[str, Tensor], case: ParityCase
) -> ModelOutput:
    side, tensors = case.transform.mask_side, list(embedding.values())
    no_masks = torch.zeros(1, 0, side, side)
    with torch.no_grad():
        outputs = [
            decoder.served(
                module, tensors, (torch.from_numpy(coords), torch.from_numpy(labels), no_masks)
            )
            for coords, labels in case.prompts
        ]
    logits, iou = (torch.cat(parts, 1)[0].numpy() for parts in zip(*outputs, strict=True))
    embedding32 = {name: each.float().numpy() for name, each in embedding.items()}
    return ModelOutput(embedding32, logits, iou)


def description(
    base: Bundle[Path],
    decoder: TunableDecoder,
    figures: Parity,
    summary: str,
    report: Mapping[str, object],
) -> Description:
    """Return the description of a tuned model, with its card.

    *summary* is one line for people; *report* is kept in the configuration as JSON.
    """
    original = (base.info.description or base.info.name).partition(_TUNED)[0]
    parameters = {
        **decoder.parameters(),
        **card.to_parameters(replace(base.info.card, parity=figures)),
        REPORT_PARAMETER: json.dumps(report, sort_keys=True),
    }
    return Description(f"{original}{_TUNED}{summary}", families.of(base.info), parameters)
