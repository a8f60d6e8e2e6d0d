"""Tuning from a data set to a model that can be served, and is better than before.

It measures, trains, exports, compares and measures again.  Only a model that is better is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from samserve import __version__
from samserve.export.parity import ExportedModel
from samserve.models import families
from samserve.models.repository import Bundle
from samserve.tuning import checks, publishing
from samserve.tuning.batches import Batches, Sampling
from samserve.tuning.embeddings import Embeddings
from samserve.tuning.errors import NotBetter, TuningError
from samserve.tuning.evaluation import MAX_OBJECTS, Demands, Evaluation, Figures, shortcoming
from samserve.tuning.examples import MIN_HELD_OUT, Example, Parts, check_parts
from samserve.tuning.loop import LAST
from samserve.tuning.plot import write_curve
from samserve.tuning.tunable import Tunable, open_tunable
from samserve.tuning.tuner import SAVE_S, Plan, Progress, Tuner, read_losses

CURVE, REPORT, SETTINGS, EMBEDDINGS = "curve.png", "report.json", "settings.json", "embeddings"


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """Options of a run.

    ``repository`` gets the model ``name``; ``run`` is the folder of the run's checkpoints, report
    and embeddings, from which it continues with ``resume``.  ``rate`` is None for the decoder's
    own, ``checkpoint`` is None for a decoder that is read from its graph.  With an
    ``adapter_rank`` above 0, the image encoder is trained too, by adapters of this rank.  Raises
    `TuningError` for invalid options.
    """

    repository: Path
    name: str
    run: Path
    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    rate: float | None = None
    device: str = "cpu"
    checkpoint: str | Path | None = None
    resume: bool = False
    adapter_rank: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    max_objects: int = MAX_OBJECTS
    demands: Demands = field(default_factory=Demands)
    save_s: float = SAVE_S

    def __post_init__(self) -> None:
        checks.check_length(self.steps, self.minutes)
        checks.check_rate(self.rate)
        checks.check_device(self.device)
        checks.check_model_name(self.name)
        if self.adapter_rank < 0:
            raise TuningError(f"the rank of adapters must be at least 0, not {self.adapter_rank}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Figures of the held-out part, and of old data if there is some, before and after."""

    before: Figures
    after: Figures
    old: tuple[Figures, Figures] | None
    folders: tuple[Path, ...]


Report = Callable[[str], None]


def tune(
    base: Bundle[Path],
    parts: Parts,
    options: TuneOptions,
    report: Report = lambda text: None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Tune a model and write the new one to a repository.

    *report* is called with a line for each step, *progress* during the training.  Raises
    `TuningError` if that is not possible, and `NotBetter`, after which nothing is written but the
    folder of the run.
    """
    check_parts(parts)
    tunable = open_tunable(base, options.checkpoint, options.adapter_rank, options.seed)
    plan = _plan(options, tunable)
    _prepare(base, parts, options, plan)
    embeddings = Embeddings(ExportedModel(base.graphs), base.info, options.run / EMBEDDINGS)
    different = f"model {base.info.name!r} has other weights than its checkpoint"
    publishing.check_parity(embeddings, tunable, tunable.networks, parts.held_out[:1], different)
    evaluation = Evaluation(base.info, options.seed, max_objects=options.max_objects)
    report(f"measuring {base.info.name} on {len(parts.held_out)} held-out images")
    before = [evaluation.figures(embeddings, each) for each in _measured(parts)]
    report(f"before: {before[0].text()}")
    _check_measured(parts, before, options.max_objects)
    tuner = Tuner(tunable, plan, options.run, progress, options.save_s)
    if options.resume:
        tuner.continue_run()
    source, family = tunable.encoder.source(embeddings), families.of(base.info)
    trained = parts.trained, parts.replay
    tuner.tune(Batches(trained, source, family, options.sampling, options.seed))
    report("exporting the model and comparing it with PyTorch")
    networks = tuner.average
    with publishing.staged(options.repository, options.name, base, tunable, networks) as tuned:
        exported = tuned.embeddings(base.info, options.run / EMBEDDINGS)
        figures = publishing.check_parity(exported, tunable, networks, parts.held_out)
        after = [evaluation.figures(exported, each) for each in _measured(parts)]
        report(f"after: {after[0].text()}")
        outcome = _outcome(before, after)
        facts = _report(base, parts, plan, tuner, outcome)
        _write_report(options.run, facts, outcome)
        reason = shortcoming(outcome.before, outcome.after, outcome.old, options.demands)
        if reason:
            raise NotBetter(f"the tuned model is not better and was not written: {reason}")
        summary = _summary(base, outcome) + tunable.encoder.summary
        folders = tuned.publish(publishing.description(base, tunable, figures, summary, facts))
    return Outcome(outcome.before, outcome.after, outcome.old, folders)


def _plan(options: TuneOptions, tunable: Tunable) -> Plan:
    return Plan(
        options.steps,
        options.minutes,
        options.seed,
        tunable.decoder.rate if options.rate is None else options.rate,
        options.device,
        options.adapter_rank,
    )


def _measured(parts: Parts) -> list[tuple[Example, ...]]:
    return [parts.held_out, *([parts.replay_held_out] if parts.replay_held_out else [])]


def _check_measured(parts: Parts, before: Sequence[Figures], max_objects: int) -> None:
    """Raise `TuningError` if too few objects are large enough to be measured."""
    for examples, figures in zip(_measured(parts), before, strict=True):
        fewest = min(MIN_HELD_OUT, max_objects * len(examples))
        if figures.objects < fewest:
            raise TuningError(
                f"only {figures.objects} objects on {len(examples)} held-out images are large "
                f"enough to be measured, at least {fewest} are needed"
            )


def _outcome(before: list[Figures], after: list[Figures]) -> Outcome:
    old = (before[1], after[1]) if len(before) > 1 else None
    return Outcome(before[0], after[0], old, ())


def _prepare(base: Bundle[Path], parts: Parts, options: TuneOptions, plan: Plan) -> None:
    """Create the folders of the run; raise `TuningError` if they have another run or the model."""
    settings = {
        "model": base.info.digest,
        "data": _digest(parts),
        "plan": asdict(plan),
        "sampling": asdict(options.sampling),
    }
    file = options.run / SETTINGS
    begun = (options.run / LAST).exists()
    if begun:
        _check_same_run(file, settings, options)
    checks.check_folders(options.repository, options.name, options.run)
    if not begun:
        file.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _check_same_run(file: Path, settings: Mapping[str, object], options: TuneOptions) -> None:
    if not options.resume:
        raise TuningError(
            f"{options.run} has a run already: continue it with --resume, or name another folder"
        )
    known = json.loads(file.read_text(encoding="utf-8"))
    changed = sorted(name for name in settings if known.get(name) != settings[name])
    if changed:
        raise TuningError(f"{options.run} has a run with another {', '.join(changed)}")


def _digest(parts: Parts) -> str:
    """Return a digest of the images and masks of a run, in their order."""
    digest = hashlib.sha256()
    for examples in (parts.trained, parts.held_out, parts.replay, parts.replay_held_out):
        for example in examples:
            masks = [(target.mask.counts, target.weight) for target in example.targets]
            digest.update(repr((example.key, masks)).encode())
        digest.update(b";")
    return digest.hexdigest()


def _report(
    base: Bundle[Path], parts: Parts, plan: Plan, tuner: Tuner, outcome: Outcome
) -> dict[str, object]:
    facts: dict[str, object] = {
        "samserve": __version__,
        "base": {"name": base.info.name, "digest": base.info.digest},
        "images": len(parts.trained),
        "objects": sum(len(example.targets) for example in parts.trained),
        "seed": plan.seed,
        "steps": tuner.step,
        "adapter_rank": plan.adapter_rank,
        "before": outcome.before.facts(),
        "after": outcome.after.facts(),
    }
    if outcome.old is not None:
        facts["old data"] = [figures.facts() for figures in outcome.old]
    return facts


def _write_report(run: Path, facts: dict[str, object], outcome: Outcome) -> None:
    (run / REPORT).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    write_curve(run / CURVE, read_losses(run), outcome.before, outcome.after)


def _summary(base: Bundle[Path], outcome: Outcome) -> str:
    before, after = outcome.before, outcome.after
    return (
        f"{base.info.name} {base.info.digest[:12]}; on {after.images} held-out images, "
        f"{after.objects} objects: one click {before.click_iou:.3f} to {after.click_iou:.3f}, "
        f"box {before.box_iou:.3f} to {after.box_iou:.3f}, clicks to IoU 0.9 "
        f"{before.clicks:.2f} to {after.clicks:.2f}"
    )
