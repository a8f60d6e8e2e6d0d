"""From a checkpoint to a ready model: read, trace, write, compare, publish.

Nothing of a refused export is left in the repository, and nothing that was there is touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch

from samserve import __version__
from samserve.export import parity
from samserve.export.checkpoint import open_sam
from samserve.export.errors import ExportError
from samserve.export.half import halve
from samserve.export.onnx_export import export_decoder, export_encoder
from samserve.export.overlays import PLAIN, Overlays
from samserve.export.parity import Answer, ExportedModel, Placed
from samserve.export.pictures import read_pictures
from samserve.export.sam.model import Sam
from samserve.export.sources.files import shown
from samserve.export.sources.source import Source
from samserve.export.staging import staging
from samserve.export.triton_repository import (
    Description,
    StagedBundle,
    check_name,
    stage_bundle,
    write_configs,
)
from samserve.models import card, families
from samserve.types import ModelCard, Parity

DEFAULT_MIN_IOU = 0.99
"""Least mean IoU of the exported masks with the checkpoint's own."""

Say = Callable[[str], None]


class Precision(StrEnum):
    """Of the image encoder's weights and arithmetic; the decoder's are always fp32."""

    FP32 = "fp32"
    FP16 = "fp16"


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How to export.

    ``name`` is the model's, made from the checkpoint's variant if empty.  ``variant`` refuses a
    checkpoint of any other.  ``pictures`` are compared on instead of the samples, unless ``check``
    is off, which fp16 does not allow.  Raises `ExportError` for what cannot be.
    """

    repository: Path
    name: str = ""
    description: str = ""
    variant: str = ""
    revision: str | None = None
    precision: Precision = Precision.FP32
    overlays: Overlays = PLAIN
    check: bool = True
    pictures: tuple[Path, ...] = ()
    min_iou: float = DEFAULT_MIN_IOU

    def __post_init__(self) -> None:
        if self.name:
            check_name(self.name)
        if self.precision is Precision.FP16 and not self.check:
            raise ExportError("fp16 is never written without comparing its masks")
        if not 0 <= self.min_iou <= 1:
            raise ExportError(f"the least mean IoU must be from 0 to 1, not {self.min_iou:g}")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: the model's name and digest, its folders and its card."""

    name: str
    digest: str
    folders: tuple[Path, ...]
    card: ModelCard


def export(spec: str | Path, options: ExportOptions, say: Say = lambda text: None) -> Exported:
    """Turn the checkpoint *spec* into the models ``<name>_encoder`` and ``<name>_decoder``.

    *spec* is as for `open_sam`; *say* is told each step.  Raises `ExportError` in one line for a
    checkpoint that is none, and for an export whose masks differ by more than the options allow.
    """
    pictures = read_pictures(options.pictures) if options.check else []
    say(f"reading {shown(str(spec))}")
    sam, source = open_sam(spec, options.revision)
    variant = _variant(sam, source, options)
    name = options.name or default_name(variant, source)
    check_name(name)
    placed = [parity.place(picture, families.SAM1, sam.config) for picture in pictures]
    expected = _reference(sam, placed, say)
    with staging(options.repository) as stage:
        bundle = _trace(sam, stage.folder, name, options.precision, say)
        figures = _compare(bundle, placed, expected, options, say) if placed else None
        made = _card(variant, source, options, figures)
        text = options.description or f"Segment Anything ({variant}) from {source.name}"
        facts = card.to_parameters(made)
        described = Description(text, families.SAM1, facts, options.overlays)
        digest = write_configs(bundle, described)
        stage.publish(bundle.folders)
    folders = tuple(options.repository / folder for folder in bundle.folders)
    return Exported(name, digest, folders, made)


def default_name(variant: str, source: Source) -> str:
    """Name a model by its variant, such as ``sam_vit_b``; one of another size by its source."""
    if variant == "mobile":
        return "mobile_sam"
    if variant != "custom":
        return f"sam_{variant}"
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(source.name).stem).strip("_.-") or "sam"


def _variant(sam: Sam, source: Source, options: ExportOptions) -> str:
    variant = sam.config.variant
    if options.variant and variant != options.variant:
        raise ExportError(f"{source.name} is a SAM of variant {variant}, not {options.variant}")
    return variant


def _reference(sam: Sam, placed: list[Placed], say: Say) -> list[Answer]:
    if placed:
        say(f"answering {len(placed)} pictures in PyTorch")
    return [parity.answer_in_torch(sam, picture) for picture in placed]


def _trace(sam: Sam, folder: Path, name: str, precision: Precision, say: Say) -> StagedBundle:
    say("tracing the mask decoder")
    decoder = export_decoder(sam)
    say(f"tracing the image encoder, {precision.value}")
    if precision is Precision.FP16:
        halve(sam.image_encoder)
    return stage_bundle(folder, name, {"encoder": export_encoder(sam), "decoder": decoder})


def _compare(
    bundle: StagedBundle,
    placed: list[Placed],
    expected: list[Answer],
    options: ExportOptions,
    say: Say,
) -> Parity:
    say(f"answering {len(placed)} pictures in ONNX Runtime")
    exported = ExportedModel(bundle.graphs)
    comparison = parity.compare(placed, expected, [exported.answer(image) for image in placed])
    if comparison.empty_or_full:
        say(
            f"masks of {comparison.empty_or_full} prompts are nearly empty or full: judged by "
            f"their logits, which differ by {comparison.logits_error:.1e}"
        )
    refusal = comparison.refusal(options.precision.value, options.min_iou)
    if refusal:
        raise ExportError(f"refused: {refusal}")
    return comparison.figures


def _card(
    variant: str, source: Source, options: ExportOptions, figures: Parity | None
) -> ModelCard:
    return ModelCard(
        variant=variant,
        source=source.name,
        source_revision=source.revision,
        source_sha256=source.sha256,
        source_format=f"{source.naming.value}, {source.dtype}",
        precision=options.precision.value,
        exporter=f"samserve {__version__}, torch {torch.__version__.partition('+')[0]}",
        parity=figures,
    )
