"""The mask formats of the protocol: the output modes that select them, and their encoding."""

from __future__ import annotations

from samserve.rpc.request_fields import choices
from samserve.types import CocoRle, MaskFormat, PackedMask, Segmentation, Size, UncompressedRle
from samserve.v1 import samserve_pb2 as pb

FORMATS = choices(pb.OutputMode, "OUTPUT_MODE", MaskFormat, MaskFormat.COCO_RLE)


def write(message: pb.Mask, segmentation: Segmentation) -> None:
    """Write the pixels of a mask into *message*."""
    size = image_size(segmentation.size)
    match segmentation:
        case CocoRle(_, counts):
            message.coco_rle.CopyFrom(pb.CocoRle(size=size, counts=counts))
        case UncompressedRle(_, runs):
            message.uncompressed_rle.CopyFrom(pb.UncompressedRle(size=size, counts=runs))
        case PackedMask(_, bits):
            message.binary_mask.CopyFrom(pb.BinaryMask(size=size, bits=bits))


def image_size(size: Size) -> pb.ImageSize:
    """Convert a size."""
    return pb.ImageSize(height=size.height, width=size.width)
