"""Propose objects: the masks of AutoMask, the most probable objects first.

Usage: python examples/recipes/proposals.py photo.jpg out.png --count 20
As in the zero-shot object proposals of "Segment Anything" (Kirillov et al., 2023): a dense grid, a
high threshold of non-maximum suppression, and the average of predicted IoU and stability as rank.
"""

from __future__ import annotations

from pathlib import Path

from drawing import arguments, opened, with_masks
from samserve.client import Mask, SyncClient


def propose(client: SyncClient, image: Path, count: int, points_per_side: int) -> list[Mask]:
    """Return up to *count* masks, the best first."""
    found = client.automask_all(
        image,
        points_per_side=points_per_side,
        # Overlapping objects, such as a part and its whole, stay.
        box_nms_thresh=0.9,
        # The rank decides, not a threshold.
        pred_iou_thresh=0.5,
        stability_score_thresh=0.5,
    )
    masks = [record.mask for record in found.records]
    masks.sort(key=lambda mask: mask.predicted_iou + mask.stability_score, reverse=True)
    return masks[:count]


def main() -> None:
    """Run the command."""
    parser = arguments(__doc__)
    parser.add_argument("--count", type=int, default=1000)
    # 64 in the paper: four times as much work.
    parser.add_argument("--points-per-side", type=int, default=32)
    options = parser.parse_args()
    with SyncClient(options.server) as client:
        masks = propose(client, options.image, options.count, options.points_per_side)
    for rank, mask in enumerate(masks[:10], 1):
        score = (mask.predicted_iou + mask.stability_score) / 2
        print(f"{rank}: score {score:.3f}, box {mask.bbox}")
    with_masks(opened(options.image), [mask.array for mask in masks]).save(options.out)


if __name__ == "__main__":
    main()
