"""Refine a mask by further clicks, each with the logits of the last mask.

Usage: python examples/recipes/refine.py photo.jpg out.png --point 320,240 --point 200,100,0
A point is x,y for the object, or x,y,0 for the background.  The image that is written shows the
mask after each click.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from drawing import arguments, opened, side_by_side, with_masks, with_points
from PIL import Image
from samserve.client import Mask, Prompt, SyncClient

Point = tuple[float, float, int]


def refine(client: SyncClient, image: Path, points: Sequence[Point]) -> Iterator[Mask]:
    """Yield the best mask after each point."""
    embedding = client.embed(image)  # once; each click then runs the mask decoder only
    logits = None
    for count in range(1, len(points) + 1):
        # The logits do not replace the earlier points: pass these again.
        prompt = Prompt(points=points[:count], mask=logits)
        # A single point is ambiguous, so take the best of three masks.
        prediction = client.predict(
            embedding,
            [prompt],
            multimask="all" if count == 1 else "single",
            low_res_logits=True,
            image=image,
        )
        best = max(prediction.results[0], key=lambda mask: mask.predicted_iou)
        logits = best.low_res_logits
        yield best


def to_point(text: str) -> Point:
    """Read x,y or x,y,label."""
    x, y, *label = text.split(",")
    return float(x), float(y), int(label[0]) if label else 1


def main() -> None:
    """Run the command."""
    parser = arguments(__doc__)
    parser.add_argument("--point", type=to_point, action="append", required=True)
    options = parser.parse_args()
    photo = opened(options.image)
    steps: list[Image.Image] = []
    with SyncClient(options.server, timeout_s=60) as client:
        for mask in refine(client, options.image, options.point):
            clicks = options.point[: len(steps) + 1]
            steps.append(with_points(with_masks(photo, [mask.array]), clicks))
            print(f"{len(clicks)}: {mask.area} pixels, predicted IoU {mask.predicted_iou:.2f}")
    side_by_side(steps).save(options.out)


if __name__ == "__main__":
    main()
