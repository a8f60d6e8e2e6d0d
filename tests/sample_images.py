"""Small images and prompts for the tests of the service."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image
from samserve.v1 import samserve_pb2 as pb


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return random pixels, uint8 RGB ``[height, width, 3]``."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Encode pixels as an image file."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def png(height: int = 48, width: int = 64, seed: int = 0) -> bytes:
    """Return a PNG file of random pixels."""
    return encode(noise(height, width, seed))


def image(height: int = 48, width: int = 64, seed: int = 0) -> pb.Image:
    """Return a message with a PNG file of random pixels."""
    return pb.Image(encoded=png(height, width, seed))


def point_prompt(x: float = 32.0, y: float = 24.0, label: int = 1) -> pb.Prompt:
    """Return a prompt of one point."""
    return pb.Prompt(points=[pb.Point(x=x, y=y, label=label)])
