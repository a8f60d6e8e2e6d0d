"""Small pictures and messages that the tests of the service share."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image
from samserve.v1 import samserve_pb2 as pb


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Make a random picture, uint8 RGB ``[height, width, 3]``."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def file_of(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Write a picture as a file."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def png(height: int = 48, width: int = 64, seed: int = 0) -> bytes:
    """Make a small random PNG."""
    return file_of(noise(height, width, seed))


def image(height: int = 48, width: int = 64, seed: int = 0) -> pb.Image:
    """Make a small random picture as a message."""
    return pb.Image(encoded=png(height, width, seed))


def click(x: float = 32.0, y: float = 24.0, label: int = 1) -> pb.Prompt:
    """Make a prompt of one click."""
    return pb.Prompt(points=[pb.Point(x=x, y=y, label=label)])
