"""The mask formats of the protocol: the output modes that select them, and their encoding."""

from __future__ import annotations

from samserve.rpc.request_fields import choices
from samserve.types import (
    Array,
    CocoRle,
    MaskFormat,
    NoPixels,
    PackedMask,
    PngMask,
    Polygon,
    Polygons,
    Segmentation,
    Size,
    UncompressedRle,
)
from samserve.v1 import samserve_pb2 as pb

FORMATS = choices(pb.OutputMode, "OUTPUT_MODE", MaskFormat, MaskFormat.COCO_RLE)

_SMALLER = {
    "uncompressed_rle": pb.OUTPUT_MODE_COCO_RLE,
    "binary_mask": pb.OUTPUT_MODE_COCO_RLE,
    "png": pb.OUTPUT_MODE_COCO_RLE,
    "coco_rle": pb.OUTPUT_MODE_POLYGONS,
    "polygons": pb.OUTPUT_MODE_BOX,
}


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
        case PngMask(_, file):
            message.png = file
        case Polygons():
            parts = [_polygon(each) for each in segmentation.polygons]
            message.polygons.CopyFrom(pb.Polygons(size=size, polygons=parts, iou=segmentation.iou))
        case NoPixels():
            pass


def smaller_mode(message: pb.Mask) -> str | None:
    """Return the name of an output mode with smaller masks than *message*, if there is one."""
    mode = _SMALLER.get(message.WhichOneof("segmentation") or "")
    return None if mode is None else pb.OutputMode.Name(mode)


def _polygon(polygon: Polygon) -> pb.Polygon:
    return pb.Polygon(exterior=_ring(polygon.exterior), holes=map(_ring, polygon.holes))


def _ring(corners: Array) -> pb.Ring:
    return pb.Ring(coordinates=corners.ravel().tolist())


def image_size(size: Size) -> pb.ImageSize:
    """Convert a size."""
    return pb.ImageSize(height=size.height, width=size.width)
