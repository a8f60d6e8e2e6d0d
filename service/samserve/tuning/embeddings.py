"""Embeddings of the images, computed once and kept in files of the format safetensors."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from samserve.export.parity import ExportedModel
from samserve.models import families
from samserve.models.families.base import ImageTransform
from samserve.tuning.examples import Example, read_pixels
from samserve.types import ModelInfo


class Embeddings:
    """The embeddings of one image encoder, as the service caches them: in float16."""

    def __init__(self, model: ExportedModel, info: ModelInfo, folder: Path) -> None:
        self._model, self._info = model, info
        self._family = families.of(info)
        self._folder = folder / info.encoder_digest
        self._folder.mkdir(parents=True, exist_ok=True)

    def transform(self, example: Example) -> ImageTransform:
        """Return how the image maps to the model frame."""
        return self._family.transform(example.size, self._info)

    def of(self, example: Example) -> dict[str, Tensor]:
        """Return the tensors of an embedding by name, ``[1,...]`` float16; computed if not kept."""
        path = self._folder / f"{example.key}.safetensors"
        if not path.exists():
            self._write(path, self._compute(example))
        tensors = load_file(path)
        return {each.name: tensors[each.name] for each in self._info.embedding}

    def _compute(self, example: Example) -> Mapping[str, Tensor]:
        transform = self.transform(example)
        image = self._family.place(read_pixels(example), transform)[None]
        inputs = {"image": image}
        if not self._family.fills_frame:
            size = [transform.resized.height, transform.resized.width]
            inputs["image_size"] = np.array([size], dtype=np.int32)
        return {
            name: torch.from_numpy(tensor) for name, tensor in self._model.embed(inputs).items()
        }

    def _write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write atomically: a run that is killed leaves no incomplete file."""
        handle, partial = tempfile.mkstemp(dir=self._folder, suffix=".partial")
        os.close(handle)
        save_file(dict(tensors), partial)
        Path(partial).replace(path)
