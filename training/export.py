"""Export a checkpoint: ``python -m training.export CHECKPOINT --repository model_repository``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from samserve.export.onnx_export import Interface, trace
from samserve.export.onnx_file import parsed, serialized
from samserve.export.tiny.graphs import EMBEDDING, SIDE, decoder_onnx
from samserve.export.triton_repository import Description, write_bundle
from samserve.models.card import to_parameters
from samserve.types import ModelCard
from torch import Tensor, nn

from training.encoder import ImageEncoder
from training.model import load_model

DESCRIPTION = Description(
    "sam_tiny: demonstration model trained on synthetic scenes",
    parameters=to_parameters(ModelCard(license="Apache-2.0")),
)


class ServedEncoder(nn.Module):
    """The encoder as served, with a cast to half precision as last operation."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor, image_size: Tensor) -> Tensor:
        """Map ``[B,1024,1024,3]`` uint8, ``[B,2]`` int32 (h, w) to ``[B,256,64,64]`` float16."""
        embedding: Tensor = self.encoder(image, image_size)
        return embedding.half()


def encoder_onnx(encoder: ImageEncoder) -> bytes:
    """Export the encoder: batch normalisation folded, weights float32."""
    image = torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8)
    size = torch.tensor([[SIDE, 700], [600, SIDE]], dtype=torch.int32)
    interface = Interface({"image": ("B", SIDE, SIDE, 3), "image_size": ("B", 2)}, EMBEDDING)
    return serialized(trace(ServedEncoder(encoder), (image, size), interface))


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--name", default="sam_tiny")
    parser.add_argument(
        "--repository", type=Path, required=True, help="Triton model repository to write into"
    )
    options = parser.parse_args()
    model = load_model(options.checkpoint)
    graphs = {"encoder": encoder_onnx(model.encoder), "decoder": decoder_onnx(model.decoder)}
    models = {role: parsed(graph) for role, graph in graphs.items()}
    write_bundle(options.repository, options.name, models, DESCRIPTION)


if __name__ == "__main__":
    main()
