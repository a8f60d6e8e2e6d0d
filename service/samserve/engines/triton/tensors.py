"""Requests for the two networks: which tensors go by address, and which in the message."""

from __future__ import annotations

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import np_to_triton_dtype

from samserve.engines.base import DecoderOutput, EncoderInput, PromptBatch
from samserve.memory.posix import Location, SharedMemory, SharedSegment
from samserve.memory.slot import Slot
from samserve.models import families
from samserve.models.digest import DIGEST_OUTPUT
from samserve.types import Array, Embedding, ModelInfo

_LOGITS, _IOU = "low_res_logits", "predicted_iou"


def encoder_inputs(image: EncoderInput, scratch: SharedSegment | None) -> list[InferInput]:
    """Put the image into *scratch*, or into the message if there is none."""
    pixels = image.pixels[None]
    size = np.array([[image.valid.height, image.valid.width]], dtype=np.int32)
    if scratch is None:
        return [_inline("image", pixels), _inline("image_size", size)]
    scratch.array[: pixels.nbytes] = pixels.reshape(-1)
    return [_at("image", pixels, Location(scratch.key, 0)), _inline("image_size", size)]


def decoder_inputs(
    embedding: Embedding, prompts: PromptBatch, shared: SharedMemory | None
) -> list[InferInput]:
    """Name the embedding where it lies in *shared*; prompts are small and go in the message."""
    return [
        *(_input(name, tensor[None], shared) for name, tensor in embedding.tensors.items()),
        _inline("point_coords", prompts.point_coords[None]),
        _inline("point_labels", prompts.point_labels[None]),
        # In the message also because Triton refuses a region for zero bytes.
        _inline("mask_input", prompts.mask_input[None]),
    ]


def said_weights(result: InferResult) -> Array:
    """Read which encoder an answer belongs to; that always comes in the message."""
    words: Array = result.as_numpy(DIGEST_OUTPUT)[0]
    return words


class EncoderAnswer:
    """Where the embedding goes: into the slot itself where *shared* holds it, or the message."""

    def __init__(self, slot: Slot, shared: SharedMemory | None) -> None:
        self._slot = slot
        located = {
            name: shared.locate(tensor) if shared is not None else None
            for name, tensor in slot.tensors.items()
        }
        self._located = {name: place for name, place in located.items() if place is not None}

    def outputs(self) -> list[InferRequestedOutput]:
        """Say where Triton is to write."""
        return [
            *(
                _output(name, tensor.nbytes, self._located.get(name))
                for name, tensor in self._slot.tensors.items()
            ),
            _output(DIGEST_OUTPUT, 0, None),
        ]

    def read(self, result: InferResult) -> None:
        """Copy what came in the message into the slot."""
        for name, tensor in self._slot.tensors.items():
            if name not in self._located:
                tensor[...] = result.as_numpy(name)[0]


class DecoderAnswer:
    """Where the outputs of one decoder request go: into *scratch*, or into the message."""

    def __init__(self, model: ModelInfo, prompts: int, scratch: SharedSegment | None) -> None:
        self._iou_shape = (prompts, families.of(model).mask_tokens)
        self._logits_shape = (*self._iou_shape, model.mask_size, model.mask_size)
        self._scratch = scratch

    @staticmethod
    def nbytes(model: ModelInfo, prompts: int) -> int:
        """Bytes of both outputs."""
        return prompts * families.of(model).mask_tokens * (model.mask_size**2 + 1) * 4

    def outputs(self) -> list[InferRequestedOutput]:
        """Say where Triton is to write."""
        places: tuple[Location | None, Location | None] = (None, None)
        if self._scratch is not None:
            key = self._scratch.key
            places = (Location(key, 0), Location(key, self._logits_bytes))
        return [
            _output(_LOGITS, self._logits_bytes, places[0]),
            _output(_IOU, self._iou_bytes, places[1]),
            _output(DIGEST_OUTPUT, 0, None),
        ]

    def read(self, result: InferResult) -> DecoderOutput:
        """Return the outputs; the logits are a view of the scratch segment if there is one."""
        if self._scratch is None:
            return DecoderOutput(result.as_numpy(_LOGITS)[0], result.as_numpy(_IOU)[0])
        iou = self._scratch.view(self._logits_bytes, self._iou_shape).copy()
        return DecoderOutput(self._scratch.view(0, self._logits_shape), iou)

    @property
    def _logits_bytes(self) -> int:
        return int(np.prod(self._logits_shape)) * 4

    @property
    def _iou_bytes(self) -> int:
        return int(np.prod(self._iou_shape)) * 4


def _input(name: str, array: Array, shared: SharedMemory | None) -> InferInput:
    location = shared.locate(array) if shared is not None else None
    return _inline(name, array) if location is None else _at(name, array, location)


def _inline(name: str, array: Array) -> InferInput:
    tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def _at(name: str, array: Array, location: Location) -> InferInput:
    tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_shared_memory(location.region, array.nbytes, offset=location.offset)
    return tensor


def _output(name: str, nbytes: int, location: Location | None) -> InferRequestedOutput:
    output = InferRequestedOutput(name)
    if location is not None:
        output.set_shared_memory(location.region, nbytes, offset=location.offset)
    return output
