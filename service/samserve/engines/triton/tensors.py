"""Requests for the two networks: tensors go by address in shared memory, or in the message."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import np_to_triton_dtype

from samserve.engines.base import (
    IOU,
    LOGITS,
    OBJECT_SCORE,
    DecoderOutput,
    EncoderInput,
    PromptBatch,
)
from samserve.memory.posix import Location, SharedMemory, SharedSegment
from samserve.memory.slot import Slot
from samserve.models import families
from samserve.models.digest import DIGEST_OUTPUT
from samserve.models.tensors import IOU_THRESHOLD
from samserve.types import Array, Embedding, ModelInfo


def encoder_inputs(image: EncoderInput, segment: SharedSegment | None) -> list[InferInput]:
    """Write the image into *segment*, or into the message if there is none."""
    pixels, location = image.pixels, None
    if segment is not None:
        segment.array[: pixels.nbytes] = pixels.reshape(-1)
        location = Location(segment.key, 0)
    return [
        _input(name, tensor, location if name == "image" else None)
        for name, tensor in image.tensors.items()
    ]


def decoder_inputs(
    model: ModelInfo, embedding: Embedding, prompts: PromptBatch, shared: SharedMemory | None
) -> list[InferInput]:
    """Refer to the embedding by its location in *shared*; prompts are sent in the message."""
    thresholds = prompts.iou_thresholds(families.of(model).mask_tokens)
    locations = _locations(embedding.tensors, shared)
    return [
        *(_input(name, each[None], locations[name]) for name, each in embedding.tensors.items()),
        _input("point_coords", prompts.point_coords[None]),
        _input("point_labels", prompts.point_labels[None]),
        # In the message also because Triton rejects regions of zero bytes.
        _input("mask_input", prompts.mask_input[None]),
        *([_input(IOU_THRESHOLD, thresholds)] if model.skips_masks else []),
    ]


def _locations(
    tensors: Mapping[str, Array], shared: SharedMemory | None
) -> dict[str, Location | None]:
    return {
        name: None if shared is None else shared.locate(tensor) for name, tensor in tensors.items()
    }


def reported_digest(result: InferResult) -> Array:
    """Return the digest of the encoder of a result; it is always in the message."""
    words: Array = result.as_numpy(DIGEST_OUTPUT)[0]
    return words


class EncoderResponse:
    """The outputs of an encoder request: in the slot if *shared* contains it, or in the message."""

    def __init__(self, slot: Slot, shared: SharedMemory | None) -> None:
        self._slot = slot
        self._locations = _locations(slot.tensors, shared)

    def outputs(self) -> list[InferRequestedOutput]:
        """Return the requested outputs and their locations."""
        tensors = self._slot.tensors.items()
        return [
            *(_output(name, tensor.nbytes, self._locations[name]) for name, tensor in tensors),
            _output(DIGEST_OUTPUT, 0, None),
        ]

    def read(self, result: InferResult) -> None:
        """Copy tensors of the message into the slot."""
        for name, tensor in self._slot.tensors.items():
            if self._locations[name] is None:
                tensor[...] = result.as_numpy(name)[0]


class DecoderResponse:
    """The outputs of a decoder request: in *segment*, or in the message if there is none."""

    def __init__(self, model: ModelInfo, prompts: int, segment: SharedSegment | None) -> None:
        family = families.of(model)
        self._has_score = family.object_score
        self._iou_shape = (prompts, family.mask_tokens)
        self._logits_shape = (*self._iou_shape, model.mask_size, model.mask_size)
        self._sizes = {
            LOGITS: int(np.prod(self._logits_shape)) * 4,
            IOU: int(np.prod(self._iou_shape)) * 4,
        }
        self._segment = segment

    @staticmethod
    def nbytes(model: ModelInfo, prompts: int) -> int:
        """Return the size of both outputs."""
        return prompts * families.of(model).mask_tokens * (model.mask_size**2 + 1) * 4

    def outputs(self) -> list[InferRequestedOutput]:
        """Return the requested outputs and their locations."""
        segment = self._segment
        locations = (
            {}
            if segment is None
            else {
                LOGITS: Location(segment.key, 0),
                IOU: Location(segment.key, self._sizes[LOGITS]),
            }
        )
        return [
            *(_output(name, nbytes, locations.get(name)) for name, nbytes in self._sizes.items()),
            _output(DIGEST_OUTPUT, 0, None),
            # Always in the message: it has four bytes per prompt.
            *([_output(OBJECT_SCORE, 0, None)] if self._has_score else []),
        ]

    def read(self, result: InferResult) -> DecoderOutput:
        """Return the outputs; the logits are a view of the segment if there is one."""
        scores = result.as_numpy(OBJECT_SCORE)[0, :, 0] if self._has_score else None
        if self._segment is None:
            return DecoderOutput(result.as_numpy(LOGITS)[0], result.as_numpy(IOU)[0], scores)
        iou = self._segment.view(self._sizes[LOGITS], self._iou_shape).copy()
        return DecoderOutput(self._segment.view(0, self._logits_shape), iou, scores)


def _input(name: str, array: Array, location: Location | None = None) -> InferInput:
    """Refer to a tensor by its location, or add it to the message."""
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
