"""Measure an exported pair: held-out scenes, nested scenes, real photographs, time.

``python -m training.evaluate model_repository --out report [--photographs FOLDER]``

Writes ``report.json`` and pictures, and prints the figures.
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

from training.photographs import COINS, SCIKIT_IMAGE, automask_all, photographs, score_coins
from training.pictures import write_extremes
from training.runtime import SIDE, OnnxPair
from training.scoring import (
    CHOICE,
    COVERED,
    TINY,
    TWO_LEVELS,
    Judged,
    Scores,
    measure,
    measure_ambiguity,
)

Array = NDArray[Any]
Figures = dict[str, float]
SURE = 0.88
"""AutoMask's default threshold of predicted IoU."""
GOOD = 0.85
TIMED_CALLS = 20


def quality(scores: Scores) -> Figures:
    """Mean IoUs by question, and how well the model knows them."""
    figures = shares(scores)
    for percentile in (10, 50):
        figures[f"box, percentile {percentile}"] = float(
            np.percentile(scores.values["box"], percentile)
        )
    everything = Judged()
    for prompt, judged in scores.judged.items():
        figures |= knowledge(prompt, judged)
        for item in fields(Judged) if prompt != CHOICE else ():
            getattr(everything, item.name).extend(getattr(judged, item.name))
    figures |= knowledge("every answer", everything)
    predicted, true = np.array(everything.predicted), np.array(everything.true)
    good, sure = true > GOOD, predicted > SURE
    if good.any():
        stable = float(np.median(np.array(everything.stability)[good]))
        figures[f"median stability of masks of IoU above {GOOD}"] = stable
    figures[f"share of masks predicted above {SURE}"] = float(sure.mean())
    if sure.any():
        figures[f"true IoU of masks predicted above {SURE}"] = float(true[sure].mean())
    return figures


def knowledge(prompt: str, judged: Judged) -> Figures:
    """Rank correlation, mean absolute difference and mean difference of predicted and true IoU."""
    predicted, true = np.array(judged.predicted), np.array(judged.true)
    return {
        f"predicted IoU, {prompt}, Spearman": float(spearmanr(predicted, true).statistic),
        f"predicted IoU, {prompt}, mean absolute difference": float(abs(predicted - true).mean()),
        f"predicted IoU, {prompt}, mean difference": float((predicted - true).mean()),
    }


def shares(scores: Scores) -> Figures:
    """Mean of every question that was asked at all; of statements, how often they hold."""
    return {name: float(np.mean(each)) for name, each in scores.values.items() if each}


def nested(scores: Scores) -> Figures:
    """Shares of clicks, and how many clicks."""
    asked = {name: scores.values.get(f"{TWO_LEVELS} {COVERED[0]}{name}", []) for name in ("", TINY)}
    return shares(scores) | {f"clicks{name}": len(each) for name, each in asked.items()}


def seconds(pair: OnnxPair) -> Figures:
    """Median times of an embedding and of one click."""
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    embedding = pair.embed(image, (SIDE, SIDE))
    point, label = np.full((1, 1, 2), 500.0), np.ones((1, 1))
    pair.decode(embedding, point, label)
    timed: dict[str, list[float]] = {"embed": [], "click": []}
    for _ in range(TIMED_CALLS):
        begin = time.perf_counter()
        pair.embed(image, (SIDE, SIDE))
        middle = time.perf_counter()
        pair.decode(embedding, point, label)
        timed["embed"].append(middle - begin)
        timed["click"].append(time.perf_counter() - middle)
    return {f"{name}, median seconds": float(np.median(each)) for name, each in timed.items()}


def automask(repository: Path, pictures: dict[str, Array], out: Path) -> Figures:
    """AutoMask with default settings on real photographs, drawn, and counted on the coins."""
    records = automask_all(repository, pictures, out)
    score = score_coins([record.mask.decode() for record in records[COINS]])
    masks: Figures = {f"masks of {name}": len(found) for name, found in records.items()}
    return masks | {
        f"coins found of {score.coins}": score.found,
        "masks that match no coin": score.unmatched,
    }


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path, help="model repository that holds the pair")
    parser.add_argument("--name", default="sam_tiny")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=12, help="objects asked for per scene")
    parser.add_argument("--pictures", nargs="*", default=SCIKIT_IMAGE, help="of skimage.data")
    parser.add_argument("--photographs", type=Path, help="folder of more .jpg files to draw")
    parser.add_argument("--out", type=Path, required=True, help="folder for report and pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    encoder, decoder = (
        options.repository / f"{options.name}_{part}" / "1" / "model.onnx"
        for part in ("encoder", "decoder")
    )
    pair = OnnxPair(encoder, decoder)
    pictures = photographs([COINS, *options.pictures], options.photographs)
    scores = measure(pair, options.scenes, options.prompts)
    write_extremes(scores.cases, options.out)
    report = {
        "held-out scenes": quality(scores) | {"clicks": len(scores.cases)},
        "nested scenes": nested(measure_ambiguity(pair, options.scenes, options.prompts)),
        "photographs": automask(options.repository, pictures, options.out),
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
