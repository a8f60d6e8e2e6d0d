"""Segment the boxes of a detector: COCO boxes in, COCO results with masks out.

Usage: python examples/recipes/boxes.py photo.jpg out.png --coco boxes.json --results masks.json
The boxes are COCO results, a list, or the annotations of a COCO file, of one image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drawing import arguments, opened, with_masks
from samserve.client import Mask, Prompt, SyncClient


def read_boxes(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a COCO file or of COCO results."""
    content = json.loads(path.read_text("utf-8"))
    return content if isinstance(content, list) else content["annotations"]


def segment(client: SyncClient, image: Path, found: list[dict[str, Any]]) -> list[Mask]:
    """Return the mask of each box."""
    embedding = client.embed(image)
    masks: list[Mask] = []
    # A call takes many boxes, up to a limit of the server.
    most = client.models().limits["max_prompts"]
    for start in range(0, len(found), most):
        prompts = []
        for entry in found[start : start + most]:
            x, y, width, height = entry["bbox"]
            prompts.append(Prompt(box=(x, y, x + width, y + height)))
        prediction = client.predict(embedding, prompts, image=image, clip_to_box=True)
        masks += [candidates[0] for candidates in prediction.results]
    return masks


def main() -> None:
    """Run the command."""
    parser = arguments(__doc__)
    parser.add_argument("--coco", type=Path, required=True, help="the boxes")
    parser.add_argument("--results", type=Path, help="where to write COCO results")
    options = parser.parse_args()
    found = read_boxes(options.coco)
    with SyncClient(options.server, timeout_s=60) as client:
        masks = segment(client, options.image, found)
    if options.results:
        results = [
            {**entry, "segmentation": mask.rle} for entry, mask in zip(found, masks, strict=True)
        ]
        options.results.write_text(json.dumps(results), "utf-8")
    with_masks(opened(options.image), [mask.array for mask in masks]).save(options.out)
    print(f"{len(masks)} masks")


if __name__ == "__main__":
    main()
