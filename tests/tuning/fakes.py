"""Embeddings without an image encoder."""

from __future__ import annotations

from typing import Any

import torch
from samserve.tuning.embeddings import Embeddings, Pixels
from samserve.tuning.examples import Example
from samserve.types import ModelInfo
from torch import Tensor


class FakeEmbeddings(Embeddings):
    """Embeddings of one number, by which a test knows the image."""

    def __init__(self, info: ModelInfo, model: Any = None) -> None:
        self.model, self.info = model, info
        self._pixels = Pixels(info)

    def of(self, example: Example) -> dict[str, Tensor]:
        """Return the first digits of the image's key."""
        return {"image_embedding": torch.tensor(float(int(example.key[:4], 16)))}
