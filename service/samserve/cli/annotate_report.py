"""What `samserve annotate` tells before, and at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from samserve.cli.bulk import truncated
from samserve.cli.errors import CommandError, SomeFailed
from samserve.cli.terminal import write_line, write_note

if TYPE_CHECKING:
    from samserve.annotate.pipeline import Summary
    from samserve.annotate.run import Files, Plan


def write_found(plan: Plan) -> None:
    """Note what was found."""
    parts = [_count(plan.total, "image")]
    if plan.skipped:
        parts.append(f"{_count(plan.skipped, 'other file')} left out")
    if plan.shard is not None:
        parts.append(f"{len(plan.images)} of them in shard {plan.shard}")
    write_note(f"{plan.source}: {', '.join(parts)}")


def write_changes(plan: Plan, changed: Sequence[str]) -> None:
    """Note the keys of ``dataset.json`` that differ from the run before."""
    if not changed:
        return
    replaced = "; its records are replaced" if set(changed) - {"source", "categories"} else ""
    write_note(f"{plan.output}: the last run differed in {' and '.join(changed)}{replaced}")


def write(plan: Plan, summary: Summary, files: Files, *, thresholds: bool) -> None:
    """Print the numbers of a run.  With *thresholds*, a hint names these if little was found.

    Raises `CommandError` if it ended early, `SomeFailed` if some images have failed.
    """
    failed = len(plan.failures) + len(summary.failures)
    images = len(plan.images) + len(plan.failures)
    done = summary.annotated + summary.unchanged + failed
    counts = {"images": images, "annotated": summary.annotated}
    exceptions = {
        "unchanged": summary.unchanged,
        "failed": failed,
        "not attempted": images - done,
    }
    counts |= {name: number for name, number in exceptions.items() if number}
    counts["masks"] = summary.masks
    lines = [f"{name}: {number}" for name, number in counts.items()]
    if summary.annotated:
        lines.append(f"images per second: {summary.annotated / summary.seconds:.3g}")
    lines.append(f"records: {plan.output}/records")
    if files.coco_images is not None:
        lines.append(f"COCO file: {plan.output}/annotations.json")
    if failed:
        lines.append(f"failures: {plan.output}/{plan.failures_file}")
    write_line("\n".join(lines))
    _write_hints(summary, files, thresholds)
    _raise(plan, summary)


def _write_hints(summary: Summary, files: Files, thresholds: bool) -> None:
    if files.without_image:
        text = "whose image is not in SOURCE any more: they are kept, but not in the COCO file"
        write_note(f"{_count(files.without_image, 'record')} {text}")
    if thresholds and summary.without_masks * 2 > summary.annotated:
        write_note(
            f"hint: nothing was found in {summary.without_masks} of "
            f"{_count(summary.annotated, 'image')}: "
            "lower --pred-iou-thresh or --stability-score-thresh"
        )


def _raise(plan: Plan, summary: Summary) -> None:
    failures = [str(each) for each in plan.failures]
    failures += [f"{each.name}: {each.reason}" for each in summary.failures]
    shown = truncated(failures, f"{plan.failures_file} lists all") if failures else []
    if summary.aborted:
        raise CommandError(*shown, summary.aborted, "the same command continues the run")
    if shown:
        raise SomeFailed(*shown)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
