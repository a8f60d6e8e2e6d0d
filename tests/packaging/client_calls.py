"""Calls a server with `samserve.client` alone; run by the Python of an environment without tests.

Prints what it found as JSON: the distributions and modules of the environment, and the results.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import samserve
from PIL import Image
from samserve import client
from samserve.client import AutoMaskRecord, Progress, Prompt, Summary, SyncClient


def main(address: str, unused_address: str, photo: Path) -> dict[str, object]:
    """Return the facts and results by name."""
    with SyncClient(address) as connected:
        results = calls(connected, photo)
    with SyncClient(unused_address, timeout_s=20) as unconnected:
        unavailable = error_of(unconnected.models)
    modules = pkgutil.walk_packages(samserve.__path__, "samserve.")
    return {
        "distributions": sorted(
            each.metadata["Name"] for each in importlib.metadata.distributions()
        ),
        "modules": ["samserve", *(each.name for each in modules)],
        "version": [samserve.__version__, importlib.metadata.version("samserve-client")],
        "typed": (Path(samserve.__path__[0]) / "py.typed").is_file(),
        "unavailable": unavailable,
        **results,
    }


def calls(connected: SyncClient, photo: Path) -> dict[str, object]:
    """Embed, predict, refine with logits and with a mask, segment everything, and fail."""
    ready = connected.ready()
    embedding = connected.embed(photo)
    point = Prompt(points=[(250, 200)])
    first = connected.predict(embedding, [point], low_res_logits=True).results[0][0]
    by_logits = Prompt(points=[(250, 200), (10, 10, 0)], mask=first.low_res_logits)
    by_mask = Prompt(points=[(250, 200)], mask=first.array)
    refined = connected.predict(embedding, [by_logits, by_mask])
    events = list(connected.automask(embedding, points_per_side=4, pred_iou_thresh=0.0))
    masks = [first, *(masks[0] for masks in refined.results)]
    formats: dict[str, object] = {}
    for name in ("png", "polygons", "binary_mask", "uncompressed_rle"):
        other = connected.predict(embedding, [point], mask_format=name).results[0][0]
        formats[name] = float((other.array & first.array).sum() / (other.array | first.array).sum())
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 6), dtype=np.uint8)).save(file, "BMP")
    records = [each.mask for each in events if isinstance(each, AutoMaskRecord)]
    assert all(each.area == np.count_nonzero(each.array) for each in [*masks, *records])
    with_early_end = connected.automask(embedding, points_per_side=8)
    progress = isinstance(next(with_early_end), Progress)
    with_early_end.close()
    return {
        "ready": ready,
        "image_size": list(embedding.image_size),
        "counts": [each.counts for each in masks],
        "iou_by_format": formats,
        "size_of_a_bmp": connected.embed(file.getvalue()).image_size,
        "records": len(records),
        "ends_with_summary": isinstance(events[-1], Summary) and events[-1].mask_count,
        "progress": progress,
        "invalid": error_of(lambda: connected.predict(embedding, [])),
        "unknown": error_of(lambda: connected.predict("unknown", [point])),
        "deleted": connected.delete_embedding(embedding),
    }


def error_of(call: Callable[[], object]) -> list[object]:
    """Return the class and the facts of the error of a call."""
    try:
        call()
    except client.SamserveClientError as error:
        fields = [each.field for each in error.field_violations]
        return [type(error).__name__, error.code, error.reason, fields]
    raise AssertionError("the call succeeded")


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
