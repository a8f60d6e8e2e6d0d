"""The formats of masks in the protocol: a row to ask for each, and a case to write it."""

from __future__ import annotations

from samserve.types import CocoRle, MaskFormat, PackedMask, Segmentation, Size, UncompressedRle
from samserve.v1 import samserve_pb2 as pb

FORMATS: dict[int, MaskFormat] = {
    pb.OUTPUT_MODE_UNSPECIFIED: MaskFormat.COCO_RLE,
    pb.OUTPUT_MODE_COCO_RLE: MaskFormat.COCO_RLE,
    pb.OUTPUT_MODE_UNCOMPRESSED_RLE: MaskFormat.UNCOMPRESSED_RLE,
    pb.OUTPUT_MODE_BINARY_MASK: MaskFormat.BINARY_MASK,
}


def write(message: pb.Mask, segmentation: Segmentation) -> None:
    """Write the pixels of a mask."""
    size = image_size(segmentation.size)
    match segmentation:
        case CocoRle(_, counts):
            message.coco_rle.CopyFrom(pb.CocoRle(size=size, counts=counts))
        case UncompressedRle(_, runs):
            message.uncompressed_rle.CopyFrom(pb.UncompressedRle(size=size, counts=runs))
        case PackedMask(_, bits):
            message.binary_mask.CopyFrom(pb.BinaryMask(size=size, bits=bits))


def image_size(size: Size) -> pb.ImageSize:
    """Write a size."""
    return pb.ImageSize(height=size.height, width=size.width)
