"""The networks of a checkpoint: what each family of models provides for the export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor, nn

from samserve.export.errors import ExportError
from samserve.export.sources.files import State, shown
from samserve.models.families.base import Family

CUSTOM = "custom"
"""The variant of a model whose sizes are not published."""


class Naming(StrEnum):
    """Naming scheme of the tensors."""

    ORIGINAL = "original"
    TRANSFORMERS = "transformers"


@dataclass(frozen=True, slots=True, eq=False)
class Shapes:
    """The sizes of a model: sides in pixels, and the tensors of an embedding without batch axis."""

    image_size: int
    mask_size: int
    embedding: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class Network(ABC):
    """The networks of a checkpoint in PyTorch, in float32, ready to be traced.

    ``variant`` is the published size or `CUSTOM`, ``name`` the default name of the model, empty for
    a custom one; ``title`` is how its family is called in descriptions.  ``parameters`` are further
    parameters of the model's configuration.
    """

    family: ClassVar[Family]
    prompt_encoder: ClassVar[str] = "prompt_encoder"
    """Name of the prompt encoder in `decoder_graph`."""
    title: str
    variant: str
    name: str
    naming: Naming
    shapes: Shapes
    parameters: Mapping[str, str]

    @abstractmethod
    def encoder_graph(self) -> nn.Module:
        """Return the image encoder: images to the tensors of an embedding.

        ``forward`` takes ``image`` uint8 ``[B,S,S,3]`` RGB in the model frame and, unless the
        family fills the frame, ``image_size`` int32 ``[B,2]``, height and width of the image
        inside it.  It returns the tensors of ``shapes.embedding`` as float16, then the same in
        float32.
        """

    @abstractmethod
    def decoder_graph(self) -> nn.Module:
        """Return prompt encoder and mask decoder: embeddings and prompts to all masks.

        ``forward`` takes the tensors of ``shapes.embedding``, ``point_coords`` ``[B,P,N,2]`` in
        model pixels, ``point_labels`` ``[B,P,N]``, N from 0, and ``mask_input`` ``[B,M,L,L]``
        logits for the first M of the P prompts.  It returns ``low_res_logits`` ``[B,P,T,L,L]``,
        ``predicted_iou`` ``[B,P,T]`` and, if the family has it, ``object_score_logits``
        ``[B,P,1]``.
        """

    @abstractmethod
    def encoder_modules(self) -> Sequence[nn.Module]:
        """Return the modules whose weights may be halved: those of the image encoder only."""


def check_tensors(
    state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], title: str
) -> None:
    """Raise `ExportError` unless *state* has exactly the tensors of the given *shapes*."""
    missing, unknown = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    if missing or unknown:
        parts = [_first("missing", missing), _first("unexpected", unknown)]
        raise ExportError(f"not a {title} checkpoint: {'; '.join(filter(None, parts))}")
    for name, shape in shapes.items():
        if tuple(state[name].shape) != tuple(shape):
            found, expected = tuple(state[name].shape), tuple(shape)
            raise ExportError(
                f"not a {title} checkpoint: {shown(name)} has shape {found}, not {expected}"
            )


def load_tensors(network: nn.Module, state: Mapping[str, Tensor], title: str) -> None:
    """Load *state* into a *network* on the meta device, as float32; it is then in eval mode.

    Raises `ExportError` for a missing or unexpected tensor, or for a wrong shape.
    """
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    check_tensors(state, shapes, title)
    # Copied, not only converted: a tensor mapped to a file would change or end with the file.
    converted = {
        name: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in state.items()
    }
    network.load_state_dict(converted, strict=True, assign=True)
    network.eval().requires_grad_(False)


def without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> State:
    """Return the tensors without a prefix that all of their names have; else unchanged."""
    if tensors and all(key.startswith(prefix) for key in tensors):
        return {key.removeprefix(prefix): value for key, value in tensors.items()}
    return dict(tensors)


def _first(text: str, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{text} {shown(names[0])}{more}" if names else ""
