"""What networks get of an image: its pixels, or its embedding, computed once and kept in a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from samserve.export.parity import ExportedModel
from samserve.models import families
from samserve.models.families.base import ImageTransform
from samserve.tuning.examples import Example, read_pixels
from samserve.types import ModelInfo


class Source(Protocol):
    """The tensors of an image that a training step begins with."""

    def transform(self, example: Example) -> ImageTransform:
        """Return how the image maps to the model frame."""
        ...

    def of(self, example: Example) -> dict[str, Tensor]:
        """Return the tensors by name, with a batch axis of 1."""
        ...


class Pixels:
    """The inputs of an image encoder."""

    def __init__(self, info: ModelInfo) -> None:
        self._info, self._family = info, families.of(info)

    def transform(self, example: Example) -> ImageTransform:
        """See `Source.transform`."""
        return self._family.transform(example.size, self._info)

    def of(self, example: Example) -> dict[str, Tensor]:
        """Return ``image`` uint8 ``[1,S,S,3]`` and, unless it fills the frame, ``image_size``."""
        transform = self.transform(example)
        image = self._family.place(read_pixels(example), transform)[None]
        inputs = {"image": torch.tensor(image)}
        if not self._family.fills_frame:
            size = [[transform.resized.height, transform.resized.width]]
            inputs["image_size"] = torch.tensor(size, dtype=torch.int32)
        return inputs


class Embeddings:
    """The embeddings of a served model's image encoder, as the service caches them: in float16.

    Each image encoder has a folder of its own in *folder*.
    """

    def __init__(self, model: ExportedModel, info: ModelInfo, folder: Path) -> None:
        self.model, self.info = model, info
        self._pixels = Pixels(info)
        self._folder = folder / info.encoder_digest
        self._folder.mkdir(parents=True, exist_ok=True)

    def transform(self, example: Example) -> ImageTransform:
        """See `Source.transform`."""
        return self._pixels.transform(example)

    def of(self, example: Example) -> dict[str, Tensor]:
        """Return the tensors of an embedding, ``[1,...]`` float16; computed if not kept."""
        path = self._folder / f"{example.key}.safetensors"
        if not path.exists():
            self._write(path, self._compute(example))
        tensors = load_file(path)
        return {each.name: tensors[each.name] for each in self.info.embedding}

    def _compute(self, example: Example) -> Mapping[str, Tensor]:
        inputs = {name: each.numpy() for name, each in self._pixels.of(example).items()}
        return {name: torch.from_numpy(tensor) for name, tensor in self.model.embed(inputs).items()}

    def _write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write atomically: a run that is killed leaves no incomplete file."""
        handle, partial = tempfile.mkstemp(dir=self._folder, suffix=".partial")
        os.close(handle)
        save_file(dict(tensors), partial)
        Path(partial).replace(path)
