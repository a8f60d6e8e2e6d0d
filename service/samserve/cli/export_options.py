"""The options that `samserve export` and `samserve models pull` share, and the export itself."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from samserve.cli import user_models
from samserve.cli.costs import Costs
from samserve.cli.errors import CommandError, UsageError
from samserve.cli.options import existing_file
from samserve.cli.progress import spinner
from samserve.cli.terminal import write_line, write_note
from samserve.system.extras import how_to_install

if TYPE_CHECKING:
    from samserve.export.pipeline import ExportOptions
    from samserve.types import ModelCard


@dataclass(frozen=True, slots=True)
class ExportFlags:
    """The options as given on the command line."""

    repository: Annotated[
        Path | None,
        typer.Option(
            "--repository",
            metavar="DIR",
            file_okay=False,
            help="Model repository to write to. Default: samserve/models in XDG_DATA_HOME or "
            "~/.local/share, which `samserve serve` reads too.",
        ),
    ] = None
    name: Annotated[
        str,
        typer.Option("--name", help="Name of the model. Default: from the checkpoint's size."),
    ] = ""
    license: Annotated[
        str,
        typer.Option(
            "--license",
            metavar="SPDX",
            help="License of the weights, for the model card. Default of `pull`: the catalog's.",
        ),
    ] = ""
    precision: Annotated[
        str,
        typer.Option("--precision", metavar="fp32|fp16", help="Precision of the image encoder."),
    ] = "fp32"
    images: Annotated[
        list[Path] | None,
        existing_file("Image for the parity check, instead of the samples; repeatable.", "--image"),
    ] = None
    min_iou: Annotated[
        float | None,
        typer.Option(
            "--min-iou",
            metavar="X",
            help="Minimum mean IoU with the masks of the checkpoint. Default: 0.99.",
        ),
    ] = None
    no_parity_check: Annotated[
        bool,
        typer.Option(
            "--no-parity-check",
            help="Skip the comparison with the checkpoint; fp32 only. Saves time and memory.",
        ),
    ] = False
    tensorrt: Annotated[
        str,
        typer.Option(
            "--tensorrt", metavar="fp32|fp16", help="Run the image encoder with TensorRT on GPUs."
        ),
    ] = ""
    gpus: Annotated[
        str,
        typer.Option(
            "--gpus", metavar="N,N", help="Device numbers of the GPUs to serve from. Default: all."
        ),
    ] = ""
    cpu_cores: Annotated[
        int,
        typer.Option(
            "--cpu-cores",
            metavar="N",
            min=0,
            help="CPU cores of Triton on a machine without a GPU. Default: all for an inference of "
            "the image encoder and one for the mask decoder.",
        ),
    ] = 0


def to_options(
    flags: ExportFlags,
    *,
    variant: str = "",
    revision: str | None = None,
    key: str = "",
    prefix: str = "",
) -> ExportOptions:
    """Convert the options; *key* and *prefix* are those of a `Selection`.

    Raises `CommandError` for an invalid one.
    """
    with export_errors():
        from samserve.export.overlays import Overlays, TensorRt
        from samserve.export.pipeline import DEFAULT_MIN_IOU, ExportOptions, Precision
        from samserve.export.sources.source import Selection

        if flags.precision not in list(Precision):
            raise UsageError(f"--precision {flags.precision!r}: expected fp32 or fp16")
        if flags.tensorrt not in ("", TensorRt.FP32, TensorRt.FP16):
            raise UsageError(f"--tensorrt {flags.tensorrt!r}: expected fp32 or fp16")
        tensorrt = TensorRt(flags.tensorrt or TensorRt.OFF)
        return ExportOptions(
            repository=flags.repository or user_models.folder(),
            name=flags.name,
            license=flags.license,
            variant=variant,
            revision=revision,
            selection=Selection(key, prefix),
            precision=Precision(flags.precision),
            overlays=Overlays(_gpus(flags.gpus), tensorrt, flags.cpu_cores),
            check_parity=not flags.no_parity_check,
            images=tuple(flags.images or ()),
            min_iou=DEFAULT_MIN_IOU if flags.min_iou is None else flags.min_iou,
        )


def run_export(spec: str | Path, options: ExportOptions) -> None:
    """Run the export and print its steps, its result and its costs."""
    costs = Costs()
    with export_errors():
        from samserve.export.pipeline import export

    with export_errors(), _interrupted_by_sigterm(), spinner("exporting"):
        exported = export(spec, options, lambda text: write_note(costs.step(text)))
    for folder in exported.folders:
        write_line(f"wrote {folder}")
    write_line(f"model {exported.name}, digest {exported.digest}")
    for line in card_lines(exported.card):
        write_line(line)
    write_note(costs.total(exported.folders))


def card_lines(card: ModelCard) -> list[str]:
    """Return the lines of a model card, one for each known value."""
    facts = asdict(card)
    figures = facts.pop("parity")
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in facts.items() if value]
    if figures is None:
        return [*lines, "parity: not compared"] if lines else []
    if not figures["prompts"]:
        return [
            *lines,
            "parity: no masks to compare, all are nearly empty or nearly full; "
            f"{figures['images']} images, embedding error {figures['embedding_error']:.1e}",
        ]
    return [
        *lines,
        f"parity: mean IoU {figures['mean_iou']:.5f}, worst {figures['worst_iou']:.5f}, "
        f"best mask differs in {figures['best_mask_mismatch_ratio']:.1%} of "
        f"{figures['prompts']} prompts on {figures['images']} images, "
        f"embedding error {figures['embedding_error']:.1e}",
    ]


def _gpus(text: str) -> tuple[int, ...]:
    if not text:
        return ()
    parts = text.split(",")
    numbers = all(part.isascii() and part.isdigit() and len(part) < 4 for part in parts)
    if not numbers or len(set(parts)) < len(parts):
        raise UsageError(f"--gpus {text!r}: expected device numbers, each once, such as 0,1")
    return tuple(int(part) for part in parts)


@contextmanager
def export_errors() -> Iterator[None]:
    """Translate errors of the export, and a failed import into what to install."""
    from samserve.export.errors import ExportError

    try:
        yield
    except ExportError as error:
        raise CommandError(str(error)) from error
    except ModuleNotFoundError as error:
        raise CommandError(
            f"this command requires {error.name}, which is not installed: "
            f"{how_to_install('export')}"
        ) from error


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that incomplete files are removed."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
