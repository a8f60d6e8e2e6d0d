"""Writes a tuned model, checked like any export."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

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
from samserve.tuning.embeddings import Embeddings
from samserve.tuning.errors import TuningError
from samserve.tuning.examples import Example, read_pixels
from samserve.tuning.tunable import Networks, Tunable
from samserve.types import ModelInfo, Parity

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

    def embeddings(self, base: ModelInfo, folder: Path) -> Embeddings:
        """Return the embeddings of the model, which is the base but for its weights."""
        info = replace(base, encoder_digest=self.bundle.encoder_digest)
        return Embeddings(ExportedModel(self.bundle.graphs), info, folder)

    def publish(self, description: Description) -> tuple[Path, ...]:
        """Write the configurations, move the folders to the repository, and return them."""
        write_configs(self.bundle, description)
        self.stage.publish(self.bundle.folders)
        return tuple(self.repository / folder for folder in self.bundle.folders)


@contextmanager
def staged(
    repository: Path, name: str, base: Bundle[Path], tunable: Tunable, networks: Networks
) -> Iterator[Tuned]:
    """Write the graphs of a tuned model to a staging folder, which is removed at the end.

    *networks* have the tuned weights.  Raises `TuningError` if a fixed encoder's digest changes.
    """
    check_name(name)
    networks = networks.cpu()
    decoder, encoder = tunable.decoder, tunable.encoder
    with staging(repository) as stage:
        # The decoder first: the export of an encoder may convert modules that both have.
        graphs = {"decoder": decoder.graph(networks.decoder)}
        graphs["encoder"] = encoder.graph(networks.encoder)
        bundle = stage_bundle(stage.folder, name, graphs)
        if encoder.fixed and bundle.encoder_digest != base.info.encoder_digest:
            raise TuningError("the image encoder cannot be copied unchanged")
        decoder.keep(networks.decoder, bundle.graphs["decoder"].parent)
        encoder.keep(networks.encoder, bundle.graphs["encoder"].parent)
        yield Tuned(bundle, stage, repository)


def check_parity(
    exported: Embeddings,
    tunable: Tunable,
    networks: Networks,
    examples: Sequence[Example],
    error: str = "parity check failed",
) -> Parity:
    """Compare the masks of exported graphs with those in PyTorch, as the export does.

    *exported* are the embeddings of the graphs; *networks* have the weights that these must have.
    Raises `TuningError` with the text *error* and the reason if the check fails.
    """
    info, source = exported.info, tunable.encoder.source(exported)
    cases, expected, actual = [], [], []
    for example in examples[:PARITY_IMAGES]:
        case = parity.parity_case(read_pixels(example), families.of(info), info)
        cases.append(case)
        with torch.no_grad():
            tensors = networks.encoder(*source.of(example).values())
            embedding = {
                spec.name: each for spec, each in zip(info.embedding, tensors, strict=True)
            }
            expected.append(_in_torch(tunable, networks, embedding, case))
        arrays = {name: each.numpy() for name, each in exported.of(example).items()}
        actual.append(exported.model.decode_case(arrays, case))
    comparison = parity.compare(cases, expected, actual)
    failure = comparison.failure(tunable.encoder.precision, DEFAULT_MIN_IOU)
    if failure:
        raise TuningError(f"{error}: {failure}")
    return comparison.figures


def _in_torch(
    tunable: Tunable, networks: Networks, embedding: Mapping[str, Tensor], case: ParityCase
) -> ModelOutput:
    side, tensors = case.transform.mask_side, list(embedding.values())
    no_masks = torch.zeros(1, 0, side, side)
    outputs = [
        tunable.decoder.served(
            networks.decoder,
            tensors,
            (torch.from_numpy(coords), torch.from_numpy(labels), no_masks),
        )
        for coords, labels in case.prompts
    ]
    logits, iou = (torch.cat(parts, 1)[0].numpy() for parts in zip(*outputs, strict=True))
    embedding32 = {name: each.float().numpy() for name, each in embedding.items()}
    return ModelOutput(embedding32, logits, iou)


def description(
    base: Bundle[Path],
    tunable: Tunable,
    figures: Parity,
    summary: str,
    report: Mapping[str, object],
) -> Description:
    """Return the description of a tuned model, with its card.

    *summary* is one line for people; *report* is kept in the configuration as JSON.
    """
    original = (base.info.description or base.info.name).partition(_TUNED)[0]
    parameters = {
        **tunable.decoder.parameters(),
        **card.to_parameters(replace(base.info.card, parity=figures)),
        REPORT_PARAMETER: json.dumps(report, sort_keys=True),
    }
    return Description(f"{original}{_TUNED}{summary}", families.of(base.info), parameters)
