"""`samserve tune`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samserve.cli import user_models
from samserve.cli.errors import CommandError, UsageError
from samserve.cli.terminal import write_line, write_note
from samserve.cli.tune_options import TuneFlags
from samserve.system.extras import how_to_install

if TYPE_CHECKING:
    from samserve.models.repository import Bundle
    from samserve.tuning.examples import Example, Parts
    from samserve.tuning.pipeline import Outcome, TuneOptions
    from samserve.tuning.tuner import Progress


class NotBetterError(CommandError):
    """The tuned model is not better than before, and was not written."""

    exit_code = 3


def tune(
    dataset: Annotated[
        Path,
        typer.Argument(metavar="DATASET", help="Images with masks, in any known format."),
    ],
    flags: TuneFlags,
) -> None:
    """Tune the mask decoder of a model on a data set, and its image encoder with --adapter-rank.

    Without it, the new model has the same image encoder, so that embeddings stay valid. It is
    written only if it is better on the held-out part; else the exit code is 3.
    """
    with _errors():
        from samserve.tuning.pipeline import tune as run

        options = _options(flags)
        base = _base(flags)
        parts = _parts(dataset, flags)
        outcome = run(base, parts, options, write_note, _show)
    _print(outcome, options)


def _options(flags: TuneFlags) -> TuneOptions:
    from samserve.tuning.batches import Sampling
    from samserve.tuning.pipeline import TuneOptions

    if flags.steps is not None and flags.minutes is not None:
        raise UsageError("--steps and --minutes both set the length: give one of them")
    if flags.replay_ratio is not None and flags.replay is None:
        raise UsageError("--replay-ratio requires --replay")
    name = flags.name or f"{flags.model}_tuned"
    checkpoint = flags.checkpoint
    steps = flags.steps if flags.steps or flags.minutes else 1000
    replay = Sampling().replay if flags.replay_ratio is None else flags.replay_ratio
    return TuneOptions(
        repository=flags.out or user_models.folder(),
        name=name,
        run=flags.run or Path(f"{name}-run"),
        steps=steps,
        minutes=flags.minutes,
        seed=flags.seed,
        rate=flags.rate,
        device=flags.device,
        # An existing file takes precedence over a name on the hub.
        checkpoint=Path(checkpoint) if checkpoint and Path(checkpoint).exists() else checkpoint,
        resume=flags.resume,
        adapter_rank=flags.adapter_rank,
        sampling=Sampling(flags.images, flags.prompts, replay),
    )


def _base(flags: TuneFlags) -> Bundle[Path]:
    """Return the model that is tuned: of --models, else of the user or of the package."""
    from samserve import app
    from samserve.models.repository import discover_each

    folders = [flags.models] if flags.models else [user_models.folder(), app.default_repository()]
    known: list[Bundle[Path]] = []
    for folder in folders:
        bundles, problems = discover_each(folder)
        known += bundles
        for bundle in bundles:
            if bundle.info.name == flags.model:
                return bundle
        if flags.model in problems:
            raise CommandError(f"{folder}: {problems[flags.model]}")
    names = ", ".join(sorted(bundle.info.name for bundle in known)) or "none"
    raise UsageError(f"there is no model {flags.model!r}; available: {names}")


def _parts(dataset: Path, flags: TuneFlags) -> Parts:
    from samserve.tuning.examples import Parts, split

    examples = _read(dataset, flags.images_folder)
    if Path(flags.held_out).exists():
        trained, held_out = examples, _read_other(Path(flags.held_out), flags.images_folder)
    else:
        trained, held_out = split(examples, _fraction(flags.held_out), flags.seed)
    if flags.replay is None:
        return Parts(trained, held_out)
    old = split(_read_other(flags.replay, flags.images_folder), 0.2, flags.seed, "the old data")
    return replace(Parts(trained, held_out), replay=old[0], replay_held_out=old[1])


def _fraction(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(
            f"--held-out {text!r}: expected a part of the images such as 0.2, or a data set"
        ) from error


def _read(path: Path, images: Path | None) -> tuple[Example, ...]:
    """Return the images of a data set.  Raises `CommandError`."""
    from samserve.datasets import reading
    from samserve.tuning.examples import read_examples

    reading.identify(path)
    folder = images or reading.path_of(reading.find_images(path))
    if folder is None:
        raise CommandError(f"{path} does not say where its images are: name them with --images")
    return read_examples(reading.open_dataset(path, images=folder).images, folder)


def _read_other(path: Path, images: Path | None) -> tuple[Example, ...]:
    """Return the images of another data set than DATASET, which may have the same folder."""
    from samserve.datasets import reading

    reading.identify(path)
    return _read(path, reading.path_of(reading.find_images(path)) or images)


def _show(progress: Progress) -> None:
    left = progress.seconds_left
    figures = ", ".join(f"{name} {value:.3f}" for name, value in progress.measures.items())
    total = f" of {progress.steps}" if progress.steps else ""
    time_left = "" if left is None else f", {left / 60:.1f} minutes left"
    write_note(f"step {progress.step}{total}{time_left}: {figures}")


def _print(outcome: Outcome, options: TuneOptions) -> None:
    for folder in outcome.folders:
        write_line(f"wrote {folder}")
    write_line(f"before: {outcome.before.text()}")
    write_line(f"after:  {outcome.after.text()}")
    if outcome.old is not None:
        write_line(f"old data before: {outcome.old[0].text()}")
        write_line(f"old data after:  {outcome.old[1].text()}")
    if options.adapter_rank:
        write_note("the image encoder has changed: images must be embedded again")
    write_note(f"report and curve of the losses: {options.run}")


@contextmanager
def _errors() -> Iterator[None]:
    """Translate errors of tuning, and a failed import into what to install."""
    from samserve.errors import SamserveError

    try:
        from samserve.export.errors import ExportError
        from samserve.tuning.errors import NotBetter, TuningError
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    try:
        yield
    except NotBetter as error:
        raise NotBetterError(str(error)) from error
    except (TuningError, ExportError, SamserveError, OSError) as error:
        raise CommandError(str(error)) from error
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error


def _not_installed(error: ModuleNotFoundError) -> CommandError:
    return CommandError(
        f"this command requires {error.name}, which is not installed: {how_to_install('tune')}"
    )
