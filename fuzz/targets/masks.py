"""Masks as prompts: from the bytes of a message to the decoder's logits.

An input is one byte of flags, height and width of the image, two bytes each, and the content:
logits, or the counts of a mask.  With a flag, the mask has its own size, before the counts.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from random import Random

import numpy as np
from samserve.core import rle as core_rle
from samserve.engines.fake import MODEL
from samserve.models.families import SAM1
from samserve.rpc import prompt_requests
from samserve.segmentation import prompts as prompting
from samserve.settings import LimitSettings
from samserve.types import BinaryMask, Prompt, Size
from samserve.v1 import samserve_pb2 as pb

from fuzz import mutation
from fuzz.targets import rle

_LOGITS, _LARGE_MODEL, _OTHER_SIZE = 1, 2, 4
_HEADER = struct.Struct("<BHH")
_MODELS = (
    replace(MODEL, image_size=64, mask_size=16),
    replace(MODEL, image_size=256, mask_size=31),
)
_MAX_SIDE = 2048
_MAX_PIXELS = 1 << 15
_LIMITS = LimitSettings()


def run(data: bytes) -> None:
    """Parse the mask, convert it for an image and a model, and check the tensor."""
    flags, image, content = _parsed(data)
    model = _MODELS[bool(flags & _LARGE_MODEL)]
    request = pb.PredictRequest(prompts=[pb.Prompt(mask=_message(flags, image, content))])
    prompts = prompt_requests.prompts(request, _LIMITS)
    prompting.check_prompts(prompts, image, model)
    transform = SAM1.transform(image, model)
    ready = tuple(prompting.with_logits(prompt, SAM1, transform) for prompt in prompts)
    groups = list(prompting.batch_prompts(ready, SAM1, transform, 16))
    assert len(groups) == 1
    logits = groups[0].batch.mask_input
    assert logits.dtype == np.float32
    assert logits.shape == (1, model.mask_size, model.mask_size)
    assert np.isfinite(logits).all()
    _check_range(prompts[0], logits)


def _check_range(prompt: Prompt, logits: np.ndarray) -> None:
    """Check the logits of a binary mask: -10 to 10, and empty only for an empty mask."""
    if not isinstance(prompt.mask, BinaryMask):
        return
    assert logits.min() >= -10
    assert logits.max() <= 10
    assert bool(logits.max() > -10) == core_rle.decode(prompt.mask.rle).any()


def _parsed(data: bytes) -> tuple[int, Size, bytes]:
    flags, height, width = _HEADER.unpack(data[: _HEADER.size].ljust(_HEADER.size, b"\0"))
    height = height % _MAX_SIDE + 1
    width = width % min(_MAX_SIDE, max(1, _MAX_PIXELS // height)) + 1
    return flags, Size(height, width), data[_HEADER.size :]


def _message(flags: int, image: Size, content: bytes) -> pb.MaskInput:
    if flags & _LOGITS:
        return pb.MaskInput(low_res_logits=content)
    size = pb.ImageSize(height=image.height, width=image.width)
    if flags & _OTHER_SIZE:
        height, width = struct.unpack("<ii", content[:8].ljust(8, b"\0"))
        size, content = pb.ImageSize(height=height, width=width), content[8:]
    return pb.MaskInput(binary=pb.CocoRle(size=size, counts=content.decode("latin-1")))


def encode_input(flags: int, image: Size, content: bytes) -> bytes:
    """Return an input."""
    return (
        _HEADER.pack(flags & 255, (image.height - 1) & 0xFFFF, (image.width - 1) & 0xFFFF) + content
    )


def seeds() -> list[bytes]:
    """Return valid masks and logits, and logits with every special number."""
    random = Random(0)
    inputs = []
    for size in (Size(1, 1), Size(5, 7), Size(16, 24), Size(1, 2048), Size(2048, 1), Size(60, 70)):
        mask = rle.random_mask(size, random)
        inputs += [encode_input(flags, size, mask.counts.encode()) for flags in (0, _LARGE_MODEL)]
        other = rle.encode_input(size, mask.counts)
        inputs.append(encode_input(_OTHER_SIZE, Size(16, 24), other))
    for value in mutation.DOUBLES:
        inputs.append(encode_input(_LOGITS, Size(16, 24), _floats(value, 16 * 16)))
    inputs.append(encode_input(_LOGITS | _LARGE_MODEL, Size(16, 24), _floats(0.5, 31 * 31)))
    inputs.append(encode_input(_LOGITS, Size(16, 24), _floats(0.5, 15 * 15)))
    return inputs


def _floats(value: float, count: int) -> bytes:
    with np.errstate(over="ignore"):
        return np.full(count, value, dtype=np.float64).astype("<f4").tobytes()
