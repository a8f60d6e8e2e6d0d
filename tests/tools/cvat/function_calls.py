"""Calls the interactor after the embeddings of two frames were lost, of which the image of the last
one is still kept; then a gateway that is overloaded.

Runs in CVAT's environment: ``python function_calls.py TARGET``.  Prints the result for each frame.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
from cvat_sdk.auto_annotation import BadFunctionError
from PIL import Image
from samserve.client import Overloaded, SyncClient
from samserve.client.errors import ErrorDetails
from samserve.cvat.interactor import create
from samserve.cvat.server import Server


def main(target: str) -> None:
    """Print an error and a result."""
    random = np.random.default_rng(0)
    images = [
        Image.fromarray(random.integers(0, 256, (200, 300, 3), np.uint8), "RGB") for _ in range(2)
    ]
    function = create(target, keep_mib=0.3, retry_s=0.5)
    frames = [function.preprocess_image(None, image) for image in images]
    with SyncClient(target) as client:
        for frame in frames:
            assert client.delete_embedding(frame.embedding)
    prompts = SimpleNamespace(pos_points=[(150, 100)], neg_points=[], bounding_box=None)
    for frame in frames:
        try:
            print(len(function.detect(None, frame, prompts)), "mask")
        except BadFunctionError as error:
            print(error)
    print("called", overloaded(target, retry_s=60), "times")
    try:
        overloaded(target, retry_s=0)
    except BadFunctionError as error:
        print(error)


def overloaded(target: str, retry_s: float) -> int:
    """Return how often a call was made that fails two times."""
    calls = 0

    def call(_: SyncClient) -> int:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise Overloaded(f"busy after {calls} time", details=ErrorDetails(retry_after_s=0.01))
        return calls

    return Server(lambda: SyncClient(target), retry_s).call(call)


if __name__ == "__main__":
    main(sys.argv[1])
