"""Requests for the two networks: which tensors go by address, and which in the message."""

from __future__ import annotations

from collections.abc import Mapping

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
    pixels, place = image.pixels[None], None
    size = np.array([[image.valid.height, image.valid.width]], dtype=np.int32)
    if scratch is not None:
        scratch.array[: pixels.nbytes] = pixels.reshape(-1)
        place = Location(scratch.key, 0)
    return [_input("image", pixels, place), _input("image_size", size)]


def decoder_inputs(
    embedding: Embedding, prompts: PromptBatch, shared: SharedMemory | None
) -> list[InferInput]:
    """Name the embedding where it lies in *shared*; prompts are small and go in the message."""
    places = _places(embedding.tensors, shared)
    return [
        *(_input(name, each[None], places[name]) for name, each in embedding.tensors.items()),
        _input("point_coords", prompts.point_coords[None]),
        _input("point_labels", prompts.point_labels[None]),
        # In the message also because Triton refuses a region for zero bytes.
        _input("mask_input", prompts.mask_input[None]),
    ]


def _places(
    tensors: Mapping[str, Array], shared: SharedMemory | None
) -> dict[str, Location | None]:
    return {
        name: None if shared is None else shared.locate(tensor) for name, tensor in tensors.items()
    }


def said_weights(result: InferResult) -> Array:
    """Read which encoder an answer belongs to; that always comes in the message."""
    words: Array = result.as_numpy(DIGEST_OUTPUT)[0]
    return words


class EncoderAnswer:
    """Where the embedding goes: into the slot itself where *shared* holds it, or the message."""

    def __init__(self, slot: Slot, shared: SharedMemory | None) -> None:
        self._slot = slot
        self._places = _places(slot.tensors, shared)

    def outputs(self) -> list[InferRequestedOutput]:
        """Say where Triton is to write."""
        tensors = self._slot.tensors.items()
        return [
            *(_output(name, tensor.nbytes, self._places[name]) for name, tensor in tensors),
            _output(DIGEST_OUTPUT, 0, None),
        ]

    def read(self, result: InferResult) -> None:
        """Copy what came in the message into the slot."""
        for name, tensor in self._slot.tensors.items():
            if self._places[name] is None:
                tensor[...] = result.as_numpy(name)[0]


class DecoderAnswer:
    """Where the outputs of one decoder request go: into *scratch*, or into the message."""

    def __init__(self, model: ModelInfo, prompts: int, scratch: SharedSegment | None) -> None:
        self._iou_shape = (prompts, families.of(model).mask_tokens)
        self._logits_shape = (*self._iou_shape, model.mask_size, model.mask_size)
        self._sizes = {
            _LOGITS: int(np.prod(self._logits_shape)) * 4,
            _IOU: int(np.prod(self._iou_shape)) * 4,
        }
        self._scratch = scratch

    @staticmethod
    def nbytes(model: ModelInfo, prompts: int) -> int:
        """Bytes of both outputs."""
        return prompts * families.of(model).mask_tokens * (model.mask_size**2 + 1) * 4

    def outputs(self) -> list[InferRequestedOutput]:
        """Say where Triton is to write."""
        scratch = self._scratch
        places = (
            {}
            if scratch is None
            else {
                _LOGITS: Location(scratch.key, 0),
                _IOU: Location(scratch.key, self._sizes[_LOGITS]),
            }
        )
        return [
            *(_output(name, nbytes, places.get(name)) for name, nbytes in self._sizes.items()),
            _output(DIGEST_OUTPUT, 0, None),
        ]

    def read(self, result: InferResult) -> DecoderOutput:
        """Return the outputs; the logits are a view of the scratch segment if there is one."""
        if self._scratch is None:
            return DecoderOutput(result.as_numpy(_LOGITS)[0], result.as_numpy(_IOU)[0])
        iou = self._scratch.view(self._sizes[_LOGITS], self._iou_shape).copy()
        return DecoderOutput(self._scratch.view(0, self._logits_shape), iou)


def _input(name: str, array: Array, location: Location | None = None) -> InferInput:
    """Name where a tensor lies, or put it into the message."""
    tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    if location is None:
        tensor.set_data_from_numpy(array)
    else:
        tensor.set_shared_memory(location.region, array.nbytes, offset=location.offset)
    return tensor


def _output(name: str, nbytes: int, location: Location | None) -> InferRequestedOutput:
    output = InferRequestedOutput(name)
    if location is not None:
        output.set_shared_memory(location.region, nbytes, offset=location.offset)
    return output
