"""Models whose results contain the versions of the weights that computed them.

Every number of the embedding is the encoder's version.  Of the four predicted IoUs, the second is
the version of the embedding's encoder, the third that of the decoder, both in hundredths.  Masks
cover the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx.parser
from onnx import TensorProto
from samserve.export.triton_repository import Description, write_bundle
from samserve.models.repository import discover
from samserve.types import ModelInfo

ENCODER = """
<ir_version: 8, opset_import: ["" : 17]>
encoder (uint8[B,1024,1024,3] image, int32[B,2] image_size)
  => (float16[B,256,64,64] image_embedding)
<float[1,1,1,1] version = {VERSION}, int64[3] rest = {256,64,64}>
{
  batch = Shape <start = 0, end = 1> (image_size)
  dims = Concat <axis = 0> (batch, rest)
  wide = Expand (version, dims)
  image_embedding = Cast <to = 10> (wide)
}
"""

DECODER = """
<ir_version: 8, opset_import: ["" : 17]>
decoder (
  float16[B,256,64,64] image_embedding, float[B,P,N,2] point_coords, float[B,P,N] point_labels,
  float[B,M,256,256] mask_input
) => (float[B,P,4,256,256] low_res_logits, float[B,P,4] predicted_iou)
<
  float one = {1}, float hundredth = {0.01}, float[1,1,1] version = {VERSION},
  int64[3] rest = {4,256,256}, int64[1] single = {1},
  int64[3] from = {0,0,0}, int64[3] to = {1,1,1}, int64[3] axes = {1,2,3},
  int64[3] number = {-1,1,1}
>
{
  batch_and_prompts = Shape <start = 0, end = 2> (point_labels)
  mask_dims = Concat <axis = 0> (batch_and_prompts, rest)
  low_res_logits = Expand (one, mask_dims)
  corner = Slice (image_embedding, from, to, axes)
  wide = Cast <to = 1> (corner)
  of_encoder = Reshape (wide, number)
  iou_dims = Concat <axis = 0> (batch_and_prompts, single)
  encoder_version = Expand (of_encoder, iou_dims)
  decoder_version = Expand (version, iou_dims)
  versions = Concat <axis = 2> (encoder_version, encoder_version, decoder_version, decoder_version)
  predicted_iou = Mul (versions, hundredth)
}
"""

_TYPES = {"float16": TensorProto.FLOAT16, "float": TensorProto.FLOAT}


@dataclass(frozen=True)
class Versions:
    """The encoder and the decoder that computed a result."""

    encoder: int
    decoder: int


def write_version(
    repository: Path,
    name: str,
    version: int,
    precision: str = "float16",
    *,
    decoder: int | None = None,
    mask_size: int = 256,
) -> ModelInfo:
    """Write or replace the model *name* with weights of a version; return its description.

    *precision* is that of the embedding: ``float16`` or ``float``.  *decoder* is the version of the
    decoder if it differs from the encoder's; the description of the model contains it.
    """
    graphs = {
        role: onnx.parser.parse_model(
            text.replace("VERSION", str(number))
            .replace("float16", precision)
            .replace("256,256", f"{mask_size},{mask_size}")
            .replace("Cast <to = 10>", f"Cast <to = {_TYPES[precision]}>")
        )
        for role, text, number in (
            ("encoder", ENCODER, version),
            ("decoder", DECODER, decoder or version),
        )
    }
    write_bundle(repository, name, graphs, Description(f"version {decoder or version}"))
    return next(model.info for model in discover(repository) if model.info.name == name)


def versions_of(iou: dict[int, float]) -> Versions:
    """Return the versions of a result from its predicted IoUs by token."""
    return Versions(round(iou[1] * 100), round(iou[2] * 100))
