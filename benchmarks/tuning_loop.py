"""The loop once round: proposals, corrections by a scripted annotator, tuning, and its figures.

    python -m benchmarks.tuning_loop OUT [--images 60] [--held-out 21] [--minutes 30]

The annotator accepts a proposal of AutoMask that is nearly an object, corrects one that is roughly
it, and adds objects that have none.  What is corrected or added has the pixels of the object.  Old
data are scenes of the kind that `sam_tiny` is trained on.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from samserve import app
from samserve.core import run_lengths
from samserve.models.repository import Bundle, discover
from samserve.tuning.examples import WEIGHTS, Example, Parts, Target
from samserve.tuning.measures import mask_iou
from samserve.tuning.pipeline import TuneOptions, tune
from samserve.tuning.tuner import Progress
from samserve.types import BoolArray, Size, UInt8Array

from benchmarks.other_scenes import SIDE, other_scene
from training.photographs import automask_all
from training.scenes import HELD_OUT, TRAINING, Scene, SceneSettings, generate_scene

ACCEPTED_IOU, CORRECTED_IOU = 0.9, 0.5
"""IoU of a proposal with an object from which it is accepted, and from which it is corrected."""
TRAINED_SEED, HELD_OUT_SEED, OLD_SEED, OLD_HELD_OUT_SEED = 1, 2, 800_000_000, 900_000_000
MIN_AREA = 300


def annotated(
    folder: Path, count: int, repository: Path
) -> tuple[tuple[Example, ...], dict[str, int]]:
    """Return images whose objects the annotator has checked, and their number by origin.

    The pixels of an accepted object are those of its proposal; of others, those of the object.
    """
    scenes = {f"{index:04d}": other_scene(TRAINED_SEED, index) for index in range(count)}
    images = {name: scene.image for name, scene in scenes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    proposals = automask_all(repository, images, folder)
    origins = dict.fromkeys(WEIGHTS, 0)
    examples = []
    for name, scene in scenes.items():
        masks = [record.mask.array for record in proposals[name]]
        targets = []
        for truth in scene.masks:
            origin, mask = _checked(truth, masks)
            origins[origin] += 1
            targets.append(Target(run_lengths.encode(mask), WEIGHTS[origin]))
        # Over the file on which AutoMask has drawn its masks.
        examples.append(_example(folder / f"{name}.png", scene.image, targets))
    return tuple(examples), origins


def _checked(truth: BoolArray, proposals: list[BoolArray]) -> tuple[str, BoolArray]:
    if not proposals:
        return "added", truth
    ious = mask_iou(np.stack(proposals), truth)
    best = int(ious.argmax())
    if ious[best] >= ACCEPTED_IOU:
        return "accepted", proposals[best]
    return ("corrected" if ious[best] >= CORRECTED_IOU else "added"), truth


def measured(folder: Path, count: int) -> tuple[Example, ...]:
    """Return held-out images with all of their objects."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for index in range(count):
        scene = other_scene(HELD_OUT_SEED, index)
        targets = [Target(run_lengths.encode(mask)) for mask in scene.masks]
        found.append(_example(folder / f"{index:04d}.png", scene.image, targets))
    return tuple(found)


def old(folder: Path, count: int, first: int, settings: SceneSettings) -> tuple[Example, ...]:
    """Return scenes of the kind that the model is trained on."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in range(first, first + count):
        scene = generate_scene(seed, SIDE, settings)
        height, width = scene.size
        targets = [Target(run_lengths.encode(mask)) for mask in _objects(scene)]
        image = np.ascontiguousarray(scene.image[:height, :width])
        found.append(_example(folder / f"{seed}.png", image, targets))
    return tuple(found)


def _objects(scene: Scene) -> Iterator[BoolArray]:
    height, width = scene.size
    for level in scene.levels[:, :height, :width]:
        ids, areas = np.unique(level, return_counts=True)
        for each, area in zip(ids, areas, strict=True):
            if each > 0 and area >= MIN_AREA:
                yield np.ascontiguousarray(level == each)


def _example(path: Path, image: UInt8Array, targets: list[Target]) -> Example:
    Image.fromarray(image).save(path)
    key = hashlib.sha256(path.read_bytes()).hexdigest()
    return Example(path, key, Size(*image.shape[:2]), tuple(targets))


def _show(progress: Progress) -> None:
    figures = ", ".join(f"{name} {value:.3f}" for name, value in progress.measures.items())
    print(
        f"step {progress.step} of {progress.steps}, {progress.seconds:.0f} s: {figures}", flush=True
    )


def main() -> None:
    """Parse the command line, and go round once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for data, run and model")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=21)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--repository", type=Path, default=app.default_repository())
    options = parser.parse_args()
    base: Bundle[Path] = discover(options.repository)[0]
    data = options.out / "data"
    trained, origins = annotated(data / "trained", options.images, options.repository)
    print("objects by origin:", {name: count for name, count in origins.items() if count})
    parts = Parts(
        trained,
        measured(data / "held_out", options.held_out),
        old(data / "old", options.images // 2, OLD_SEED, TRAINING),
        old(data / "old_held_out", options.held_out, OLD_HELD_OUT_SEED, HELD_OUT),
    )
    settings = TuneOptions(
        options.out / "models", base.info.name, options.out / "run", minutes=options.minutes
    )
    outcome = tune(base, parts, settings, lambda text: print(text, flush=True), _show)
    print("before:", outcome.before.text(), "\nafter: ", outcome.after.text())
    if outcome.old is not None:
        print("old before:", outcome.old[0].text(), "\nold after: ", outcome.old[1].text())


if __name__ == "__main__":
    main()
