"""Draw an edge map: the outlines of all masks, thinned.

Usage: python examples/recipes/edges.py photo.jpg out.png
As in the zero-shot edge detection of "Segment Anything" (Kirillov et al., 2023): masks of a grid
of 16 x 16 points, Sobel filters on their probabilities at their outlines, the maximum over all
masks, and non-maximum suppression across each edge.  Needs SciPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from drawing import arguments
from PIL import Image
from samserve.client import Prompt, SyncClient
from scipy import ndimage, special

Map = npt.NDArray[np.float32]


def probabilities(client: SyncClient, image: Path, pred_iou_thresh: float) -> Iterator[Map]:
    """Yield the probability of each mask at each pixel of the image, float32 ``[h, w]``."""
    # AutoMask removes duplicates, and returns the point of each mask that is left.
    everything = client.automask_all(
        image,
        points_per_side=16,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=0.0,
        mask_format="box",
    )
    embedding = everything.summary.embedding
    (model,) = [each for each in client.models().models if each.name == embedding.model]
    # 96 masks of 256 KiB in a response.
    for start in range(0, len(everything.records), 32):
        part = everything.records[start : start + 32]
        prompts = [Prompt(points=[record.point]) for record in part]
        predicted = client.predict(
            embedding, prompts, image=image, multimask="all", low_res_logits="only"
        )
        for record, candidates in zip(part, predicted.results, strict=True):
            score = record.mask.predicted_iou
            same = min(candidates, key=lambda mask: abs(mask.predicted_iou - score))
            yield at_image_size(same.low_res_logits, embedding.image_size, model.family)


def at_image_size(logits: Map, size: tuple[int, int], family: str) -> Map:
    """Upsample low-resolution logits, and convert them to probabilities."""
    height, width = size
    side = max(size)
    # The image fills the frame of sam2; other families pad it on the right or below.
    used = (1.0, 1.0) if family == "sam2" else (width / side, height / side)
    box = (0, 0, used[0] * logits.shape[1], used[1] * logits.shape[0])
    large = Image.fromarray(logits).resize((width, height), Image.Resampling.BILINEAR, box)
    return special.expit(np.asarray(large))


def edge_map(maps: Iterator[Map]) -> Map:
    """Return the strength of the edge at each pixel, 0 to 1."""
    strongest: Map | None = None
    for probability in maps:
        strength = np.hypot(ndimage.sobel(probability, 0), ndimage.sobel(probability, 1))
        # Inside and far outside of a mask, changes of the probability are no edges.
        mask = probability > 0.5
        outline = ndimage.binary_dilation(mask, iterations=2) & ~ndimage.binary_erosion(mask)
        strength = np.where(outline, strength, 0)
        strongest = strength if strongest is None else np.maximum(strongest, strength)
    if strongest is None:
        raise SystemExit("AutoMask found no masks")
    return thinned(strongest / max(strongest.max(), 1e-6))


def thinned(strength: Map) -> Map:
    """Keep the pixels that are the maximum across their edge."""
    smooth = ndimage.gaussian_filter(strength, 1)
    rows, columns = np.indices(strength.shape, np.float32)
    # Across an edge the second derivative is the largest: the eigenvector of the Hessian.
    (yy, yx), (_, xx) = (np.gradient(first) for first in np.gradient(smooth))
    angle = 0.5 * np.arctan2(2 * yx, xx - yy) + np.pi / 2
    keep = np.ones(strength.shape, bool)
    for sign in (-1, 1):
        at = [rows + sign * np.sin(angle), columns + sign * np.cos(angle)]
        keep &= smooth >= ndimage.map_coordinates(smooth, at, order=1, mode="nearest")
    return np.where(keep, strength, 0)


def main() -> None:
    """Run the command."""
    parser = arguments(__doc__)
    # The paper keeps all masks; a small model has many that outline nothing.
    parser.add_argument("--pred-iou-thresh", type=float, default=0.0)
    options = parser.parse_args()
    with SyncClient(options.server) as client:
        edges = edge_map(probabilities(client, options.image, options.pred_iou_thresh))
    Image.fromarray((255 - 255 * edges).astype(np.uint8)).save(options.out)


if __name__ == "__main__":
    main()
