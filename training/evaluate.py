"""Evaluate exported graphs: held-out scenes, nested scenes, photographs, time.

``python -m training.evaluate model_repository --out report [--photographs FOLDER]``

Writes ``report.json`` and images, and prints the figures.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from training.contact_sheets import write_extremes
from training.photographs import COINS, SCIKIT_IMAGE, automask_all, photographs, score_coins
from training.runtime import SIDE, OnnxPair
from training.scoring import (
    CHOICE,
    COVERED,
    TINY,
    TWO_LEVELS,
    IouPairs,
    Scores,
    measure,
    measure_ambiguity,
)

Array = NDArray[Any]
Figures = dict[str, float]
HIGH_PREDICTED_IOU = 0.88
"""AutoMask's default threshold of predicted IoU."""
GOOD = 0.85
TIMED_CALLS = 20


def quality(scores: Scores) -> Figures:
    """Return mean IoUs by measure, and the accuracy of predicted IoUs."""
    figures = means(scores)
    for percentile in (10, 50):
        figures[f"box, percentile {percentile}"] = float(
            np.percentile(scores.values["box"], percentile)
        )
    all_pairs = IouPairs()
    for prompt, iou_pairs in scores.iou_pairs.items():
        figures |= iou_accuracy(prompt, iou_pairs)
        for item in fields(IouPairs) if prompt != CHOICE else ():
            getattr(all_pairs, item.name).extend(getattr(iou_pairs, item.name))
    figures |= iou_accuracy("all masks", all_pairs)
    predicted, true = np.array(all_pairs.predicted), np.array(all_pairs.true)
    good, high = true > GOOD, predicted > HIGH_PREDICTED_IOU
    if good.any():
        stable = float(np.median(np.array(all_pairs.stability)[good]))
        figures[f"median stability of masks of IoU above {GOOD}"] = stable
    figures[f"ratio of masks predicted above {HIGH_PREDICTED_IOU}"] = float(high.mean())
    if high.any():
        figures[f"true IoU of masks predicted above {HIGH_PREDICTED_IOU}"] = float(
            true[high].mean()
        )
    return figures


def iou_accuracy(prompt: str, iou_pairs: IouPairs) -> Figures:
    """Return rank correlation, mean absolute and mean difference of predicted and true IoU."""
    predicted, true = np.array(iou_pairs.predicted), np.array(iou_pairs.true)
    return {
        f"predicted IoU, {prompt}, Spearman": float(spearmanr(predicted, true).statistic),
        f"predicted IoU, {prompt}, mean absolute difference": float(abs(predicted - true).mean()),
        f"predicted IoU, {prompt}, mean difference": float((predicted - true).mean()),
    }


def means(scores: Scores) -> Figures:
    """Return the mean of every measure that has values; of booleans, the ratio of true ones."""
    return {name: float(np.mean(values)) for name, values in scores.values.items() if values}


def nested(scores: Scores) -> Figures:
    """Return ratios of points, and the numbers of points."""
    covered = {
        name: scores.values.get(f"{TWO_LEVELS} {COVERED[0]}{name}", []) for name in ("", TINY)
    }
    return means(scores) | {f"points{name}": len(values) for name, values in covered.items()}


def seconds(pair: OnnxPair) -> Figures:
    """Return median times of an embedding and of one point."""
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    embedding = pair.embed(image, (SIDE, SIDE))
    point, label = np.full((1, 1, 2), 500.0), np.ones((1, 1))
    pair.decode(embedding, point, label)
    timed: dict[str, list[float]] = {"embed": [], "point": []}
    for _ in range(TIMED_CALLS):
        start = time.perf_counter()
        pair.embed(image, (SIDE, SIDE))
        middle = time.perf_counter()
        pair.decode(embedding, point, label)
        timed["embed"].append(middle - start)
        timed["point"].append(time.perf_counter() - middle)
    return {f"{name}, median seconds": float(np.median(values)) for name, values in timed.items()}


def automask(repository: Path, images: dict[str, Array], out: Path) -> Figures:
    """Run AutoMask with default options on photographs: masks are drawn, coins are counted."""
    records = automask_all(repository, images, out)
    score = score_coins([record.mask.decode() for record in records[COINS]])
    masks: Figures = {f"masks of {name}": len(found) for name, found in records.items()}
    return masks | {
        f"coins found of {score.coins}": score.found,
        "masks that match no coin": score.unmatched,
    }


def main() -> None:
    """Parse the command line, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path, help="model repository with the exported graphs")
    parser.add_argument("--name", default="sam_tiny")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=12, help="objects per scene")
    parser.add_argument("--images", nargs="*", default=SCIKIT_IMAGE, help="of skimage.data")
    parser.add_argument("--photographs", type=Path, help="folder of further .jpg files")
    parser.add_argument("--out", type=Path, required=True, help="folder for report and images")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    encoder, decoder = (
        options.repository / f"{options.name}_{part}" / "1" / "model.onnx"
        for part in ("encoder", "decoder")
    )
    pair = OnnxPair(encoder, decoder)
    images = photographs([COINS, *options.images], options.photographs)
    scores = measure(pair, options.scenes, options.prompts)
    write_extremes(scores.cases, options.out)
    report = {
        "held-out scenes": quality(scores) | {"points": len(scores.cases)},
        "nested scenes": nested(measure_ambiguity(pair, options.scenes, options.prompts)),
        "photographs": automask(options.repository, images, options.out),
        "time": seconds(pair),
        "size": {"MiB": sum(path.stat().st_size for path in (encoder, decoder)) / 2**20},
    }
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    for part, figures in report.items():
        print(part)
        for name, value in figures.items():
            print(f"  {name}: {value:.3f}")


if __name__ == "__main__":
    main()
