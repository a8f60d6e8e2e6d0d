"""What `samserve export` and `samserve models pull` share: options, and the export itself."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from samserve.cli.errors import CommandError, UsageError
from samserve.cli.options import existing_file
from samserve.cli.progress import busy
from samserve.cli.terminal import note, say
from samserve.system.extras import how_to_install

if TYPE_CHECKING:
    from samserve.export.pipeline import ExportOptions
    from samserve.types import ModelCard


@dataclass(frozen=True, slots=True)
class ExportFlags:
    """The options as they were typed."""

    repository: Annotated[
        Path,
        typer.Option(
            "--repository", metavar="DIR", file_okay=False, help="Model repository to add to."
        ),
    ]
    name: Annotated[
        str,
        typer.Option("--name", help="Name of the model; made from the checkpoint's size if unset."),
    ] = ""
    precision: Annotated[
        str,
        typer.Option("--precision", metavar="fp32|fp16", help="Of the image encoder's arithmetic."),
    ] = "fp32"
    pictures: Annotated[
        list[Path] | None,
        existing_file("Image to compare masks on, instead of the samples; repeatable.", "--image"),
    ] = None
    min_iou: Annotated[
        float | None,
        typer.Option(
            "--min-iou", metavar="X", help="Least mean IoU with the checkpoint's own masks; 0.99."
        ),
    ] = None
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Compare no masks; fp32 only. Saves time and memory.")
    ] = False
    tensorrt: Annotated[
        str,
        typer.Option(
            "--tensorrt", metavar="fp32|fp16", help="Let TensorRT run the image encoder on GPUs."
        ),
    ] = ""
    gpus: Annotated[
        str,
        typer.Option(
            "--gpus", metavar="N,N", help="GPUs to serve from; without it, all there are."
        ),
    ] = ""
    cpu_cores: Annotated[
        int,
        typer.Option(
            "--cpu-cores",
            metavar="N",
            min=0,
            help="Cores that Triton has where it has no GPU; without it, all for an encode and "
            "one for a click.",
        ),
    ] = 0


def options_of(
    flags: ExportFlags, *, variant: str = "", revision: str | None = None
) -> ExportOptions:
    """Read the options; one that is wrong is told before any work."""
    with export_errors():
        from samserve.export.overlays import Overlays, TensorRt
        from samserve.export.pipeline import DEFAULT_MIN_IOU, ExportOptions, Precision

        if flags.precision not in list(Precision):
            raise UsageError(f"--precision {flags.precision!r}: expected fp32 or fp16")
        if flags.tensorrt not in ("", TensorRt.FP32, TensorRt.FP16):
            raise UsageError(f"--tensorrt {flags.tensorrt!r}: expected fp32 or fp16")
        tensorrt = TensorRt(flags.tensorrt or TensorRt.OFF)
        return ExportOptions(
            repository=flags.repository,
            name=flags.name,
            variant=variant,
            revision=revision,
            precision=Precision(flags.precision),
            overlays=Overlays(_gpus(flags.gpus), tensorrt, flags.cpu_cores),
            check=not flags.no_check,
            pictures=tuple(flags.pictures or ()),
            min_iou=DEFAULT_MIN_IOU if flags.min_iou is None else flags.min_iou,
        )


def run_export(spec: str | Path, options: ExportOptions) -> None:
    """Export and say what came out."""
    from samserve.export.pipeline import export

    with export_errors(), _ended_by_sigterm(), busy("exporting"):
        exported = export(spec, options, note)
    for folder in exported.folders:
        say(f"wrote {folder}")
    say(f"model {exported.name}, digest {exported.digest}")
    for line in card_lines(exported.card):
        say(line)


def card_lines(card: ModelCard) -> list[str]:
    """Write a model card, one line for each thing that is known."""
    facts = asdict(card)
    figures = facts.pop("parity")
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in facts.items() if value]
    if figures is None:
        return [*lines, "parity: not compared"] if lines else []
    if not figures["prompts"]:
        return [
            *lines,
            "parity: no masks to compare, all are nearly empty or full; "
            f"{figures['pictures']} images, embedding error {figures['embedding_error']:.1e}",
        ]
    return [
        *lines,
        f"parity: mean IoU {figures['mean_iou']:.5f}, worst {figures['worst_iou']:.5f}, "
        f"other choice in {figures['changed_choices']:.1%} of {figures['prompts']} prompts on "
        f"{figures['pictures']} pictures, embedding error {figures['embedding_error']:.1e}",
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
    """Translate errors of the export, and an import that fails into what to install."""
    from samserve.export.errors import ExportError

    try:
        yield
    except ExportError as error:
        raise CommandError(str(error)) from error
    except ModuleNotFoundError as error:
        raise CommandError(
            f"this needs {error.name}, which is not installed: {how_to_install('export')}"
        ) from error


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, so that nothing half-written stays."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
