"""The export pipeline: from a checkpoint to a model that can be served.

It reads, traces, writes, compares and publishes.  An export that fails leaves the repository
unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch

from samserve import __version__
from samserve.export import parity
from samserve.export.checkpoint import open_network
from samserve.export.errors import ExportError
from samserve.export.families.base import Network
from samserve.export.half import halve
from samserve.export.images import read_images
from samserve.export.onnx_export import export_decoder, export_encoder
from samserve.export.overlays import PLAIN, Overlays
from samserve.export.parity import ExportedModel, ModelOutput, ParityCase
from samserve.export.sources.files import shown
from samserve.export.sources.source import EVERYTHING, Selection, Source
from samserve.export.staging import staging
from samserve.export.triton_repository import (
    Description,
    StagedBundle,
    check_name,
    stage_bundle,
    write_configs,
)
from samserve.models import card
from samserve.types import ModelCard, Parity

DEFAULT_MIN_IOU = 0.99
"""Minimum mean IoU of the exported masks with those of the checkpoint."""

Report = Callable[[str], None]


class Precision(StrEnum):
    """Precision of the image encoder's weights and arithmetic; the decoder always uses fp32."""

    FP32 = "fp32"
    FP16 = "fp16"


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Options of an export.

    ``name`` is the name of the model, from the checkpoint's variant if empty.  ``license`` is that
    of the weights, an SPDX identifier, for the card; empty if unknown.  ``variant``, if set,
    is the required variant of the checkpoint or its default name, which no other family has, and
    ``selection`` the part of it that is used.
    ``images`` replace the samples of the parity check, which ``check_parity`` disables; fp16
    requires it.  Raises `ExportError` for invalid options.
    """

    repository: Path
    name: str = ""
    description: str = ""
    license: str = ""
    variant: str = ""
    revision: str | None = None
    selection: Selection = EVERYTHING
    precision: Precision = Precision.FP32
    overlays: Overlays = PLAIN
    check_parity: bool = True
    images: tuple[Path, ...] = ()
    min_iou: float = DEFAULT_MIN_IOU

    def __post_init__(self) -> None:
        if self.name:
            check_name(self.name)
        if self.precision is Precision.FP16 and not self.check_parity:
            raise ExportError("fp16 requires the parity check")
        if not 0 <= self.min_iou <= 1:
            raise ExportError(f"the minimum mean IoU must be from 0 to 1, not {self.min_iou:g}")


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export: the model's name and digest, its folders and its card."""

    name: str
    digest: str
    folders: tuple[Path, ...]
    card: ModelCard


def export(
    spec: str | Path, options: ExportOptions, report: Report = lambda text: None
) -> Exported:
    """Export the checkpoint *spec* to the models ``<name>_encoder`` and ``<name>_decoder``.

    *spec* is as for `open_network`; *report* is called with a line for each step.  Raises
    `ExportError` with a text of one line for an invalid checkpoint, and if the parity check fails.
    """
    with _memory_errors():
        return _export(spec, options, report)


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        # PyTorch, ONNX Runtime and OpenCV have no exception of their own for this.
        if not isinstance(error, MemoryError) and "allocate" not in str(error):
            raise
        raise ExportError("there is not enough memory for this export") from error


def _export(spec: str | Path, options: ExportOptions, report: Report) -> Exported:
    images = read_images(options.images) if options.check_parity else []
    report(f"reading {shown(str(spec))}")
    network, source = open_network(spec, options.revision, options.selection)
    _check_variant(network, source, options)
    name = options.name or default_name(network, source)
    check_name(name)
    cases = [parity.parity_case(image, network.family, network.shapes) for image in images]
    expected = _reference(network, cases, report)
    with staging(options.repository) as stage:
        bundle = _trace(network, stage.folder, name, options.precision, report)
        figures = _compare(bundle, cases, expected, options, report) if cases else None
        model_card = _card(network, source, options, figures)
        text = options.description or f"{network.title} ({network.variant}) from {source.name}"
        parameters = {**network.parameters, **card.to_parameters(model_card)}
        description = Description(text, network.family, parameters, options.overlays)
        digest = write_configs(bundle, description)
        stage.publish(bundle.folders)
    folders = tuple(options.repository / folder for folder in bundle.folders)
    return Exported(name, digest, folders, model_card)


def default_name(network: Network, source: Source) -> str:
    """Return a name from the variant, such as ``sam_vit_b``; for a custom size, from the source."""
    if network.name:
        return network.name
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(source.name).stem).strip("_.-") or "sam"


def _check_variant(network: Network, source: Source, options: ExportOptions) -> None:
    if options.variant and options.variant not in (network.variant, network.name):
        raise ExportError(
            f"{source.name} has a model of the variant {network.variant}, not {options.variant}"
        )


def _reference(network: Network, cases: list[ParityCase], report: Report) -> list[ModelOutput]:
    if cases:
        report(f"running {len(cases)} images in PyTorch")
    return [parity.run_in_torch(network, case) for case in cases]


def _trace(
    network: Network, folder: Path, name: str, precision: Precision, report: Report
) -> StagedBundle:
    report("tracing the mask decoder")
    decoder = export_decoder(network)
    report(f"tracing the image encoder, {precision.value}")
    if precision is Precision.FP16:
        for module in network.encoder_modules():
            halve(module)
    return stage_bundle(folder, name, {"encoder": export_encoder(network), "decoder": decoder})


def _compare(
    bundle: StagedBundle,
    cases: list[ParityCase],
    expected: list[ModelOutput],
    options: ExportOptions,
    report: Report,
) -> Parity:
    report(f"running {len(cases)} images in ONNX Runtime")
    exported = ExportedModel(bundle.graphs)
    comparison = parity.compare(cases, expected, [exported.run(case) for case in cases])
    if comparison.empty_or_full:
        report(
            f"masks of {comparison.empty_or_full} prompts are nearly empty or full: compared by "
            f"their logits, which differ by {comparison.logits_error:.1e}"
        )
    failure = comparison.failure(options.precision.value, options.min_iou)
    if failure:
        raise ExportError(f"parity check failed: {failure}")
    return comparison.figures


def _card(
    network: Network, source: Source, options: ExportOptions, figures: Parity | None
) -> ModelCard:
    source_format = (network.naming.value, source.dtype, str(options.selection))
    return ModelCard(
        variant=network.variant,
        source=source.name,
        source_revision=source.revision,
        source_sha256=source.sha256,
        source_format=", ".join(filter(None, source_format)),
        precision=options.precision.value,
        exporter=f"samserve {__version__}, torch {torch.__version__.partition('+')[0]}",
        license=options.license,
        parity=figures,
    )
