"""Conversion of prompts in image pixels to tensors of the mask decoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace

import numpy as np

from samserve.core import rle
from samserve.engines.base import PromptBatch
from samserve.errors import InvalidRequest, Violations
from samserve.models import families
from samserve.models.families.base import Family, ImageTransform
from samserve.types import (
    Array,
    BinaryMask,
    Box,
    FloatArray,
    LogitsMask,
    MaskSelection,
    ModelInfo,
    Prompt,
    Size,
)


@dataclass(frozen=True, slots=True, eq=False)
class PromptGroup:
    """Prompts that are decoded in one batch, with their indices in the request."""

    indices: tuple[int, ...]
    batch: PromptBatch


@dataclass(frozen=True, slots=True, eq=False)
class _SparsePrompt:
    index: int
    coords: FloatArray
    labels: FloatArray
    mask: FloatArray | None


def check_prompts(prompts: tuple[Prompt, ...], image: Size, model: ModelInfo) -> None:
    """Raise `InvalidRequest` with every violation of the limits of the image or the model."""
    violations = Violations()
    supported = families.of(model).capabilities
    for i, prompt in enumerate(prompts):
        _check_kind(violations, f"prompts[{i}].points", prompt.points, supported.points, model)
        _check_kind(violations, f"prompts[{i}].box", prompt.box, supported.boxes, model)
        _check_kind(violations, f"prompts[{i}].mask", prompt.mask, supported.masks, model)
        for j, point in enumerate(prompt.points):
            field = f"prompts[{i}].points[{j}]"
            _check_coordinate(violations, f"{field}.x", point.x, image.width, "width")
            _check_coordinate(violations, f"{field}.y", point.y, image.height, "height")
        if prompt.box is not None:
            _check_box(violations, f"prompts[{i}].box", prompt.box, image)
        if isinstance(prompt.mask, BinaryMask):
            field, size = f"prompts[{i}].mask.binary.size", prompt.mask.rle.size
            check_mask_size(violations, field, size, image)
        if isinstance(prompt.mask, LogitsMask):
            field, size = f"prompts[{i}].mask.low_res_logits", Size(*prompt.mask.logits.shape)
            check_mask_size(violations, field, size, Size(model.mask_size, model.mask_size))
    violations.check()


def check_selection(selection: MaskSelection, model: ModelInfo, field: str = "hq_mode") -> None:
    """Raise `InvalidRequest` for a selection that the model does not support."""
    if selection.hq_mode is not None and not families.of(model).capabilities.hq_mode:
        raise InvalidRequest(field, f"is not supported by model {model.name!r}")


def _check_kind(
    violations: Violations, field: str, value: object, supported: bool, model: ModelInfo
) -> None:
    if value and not supported:
        violations.add(InvalidRequest(field, f"is not supported by model {model.name!r}"))


def check_box_inside(field: str, box: Box, image: Size) -> None:
    """Raise `InvalidRequest` unless the box lies inside the image."""
    violations = Violations()
    _check_box(violations, field, box, image)
    violations.check()


def _check_box(violations: Violations, field: str, box: Box, image: Size) -> None:
    _check_coordinate(violations, f"{field}.x_min", box.x_min, image.width, "width")
    _check_coordinate(violations, f"{field}.y_min", box.y_min, image.height, "height")
    _check_coordinate(violations, f"{field}.x_max", box.x_max, image.width, "width")
    _check_coordinate(violations, f"{field}.y_max", box.y_max, image.height, "height")


def _check_coordinate(
    violations: Violations, field: str, value: float, limit: int, dimension: str
) -> None:
    """Add a violation unless 0 <= value <= limit."""
    if not 0 <= value <= limit:
        text = f"must be from 0 to {limit}, the {dimension} of the image; got {value:g}"
        metadata = {"limit": str(limit), "value": f"{value:g}"}
        violations.add(InvalidRequest(field, text, metadata=metadata))


def check_mask_size(violations: Violations, field: str, size: Size, expected: Size) -> None:
    """Add a violation unless a mask has the expected size."""
    if size == expected:
        return
    limit = f"{expected.height}x{expected.width}"
    value = f"{size.height}x{size.width}"
    text = f"must have the size (height x width) {limit}; got {value}"
    metadata = {"limit": limit, "value": value}
    violations.add(InvalidRequest(field, text, metadata=metadata))


def batch_prompts(
    prompts: tuple[Prompt, ...], family: Family, transform: ImageTransform, max_prompts: int
) -> Iterator[PromptGroup]:
    """Yield batches of at most *max_prompts* prompts with equal point counts and kinds of mask.

    Binary masks must have been converted to logits, see `with_logits`.  Point counts are never
    padded to match: an additional padding point is a token that the decoder attends to, so a
    prompt's masks would depend on the other prompts of its batch.
    """
    groups: dict[tuple[int, bool], list[_SparsePrompt]] = {}
    for index, prompt in enumerate(prompts):
        sparse = _sparse_prompt(index, prompt, family, transform)
        groups.setdefault((len(sparse.labels), sparse.mask is not None), []).append(sparse)
    for members in groups.values():
        for start in range(0, len(members), max_prompts):
            yield _stack(members[start : start + max_prompts], transform)


def _sparse_prompt(
    index: int, prompt: Prompt, family: Family, transform: ImageTransform
) -> _SparsePrompt:
    points = np.array([(p.x, p.y) for p in prompt.points], dtype=np.float64).reshape(-1, 2)
    labels = [point.label for point in prompt.points]
    corners = None if prompt.box is None else np.array(astuple(prompt.box)).reshape(2, 2)
    box = None if corners is None else transform.points_to_model(corners).ravel()
    coords, values = family.prompt(transform.points_to_model(points), labels, box)
    assert not isinstance(prompt.mask, BinaryMask)
    mask = None if prompt.mask is None else prompt.mask.logits
    return _SparsePrompt(index, coords, values, mask)


def with_logits(prompt: Prompt, family: Family, transform: ImageTransform) -> Prompt:
    """Convert a binary mask to low-resolution logits; slow for a large image."""
    if not isinstance(prompt.mask, BinaryMask):
        return prompt
    mask = rle.decode(prompt.mask.rle)
    return replace(prompt, mask=LogitsMask(family.mask_prompt(mask, transform)))


def grid_batch(points: Array, family: Family, transform: ImageTransform) -> PromptBatch:
    """Return one prompt per AutoMask point, XY ``[P, 2]`` in image (or crop) pixels."""
    coords, labels = family.grid_prompts(transform.points_to_model(points))
    return PromptBatch(coords, labels, _no_masks(transform))


def _no_masks(transform: ImageTransform) -> FloatArray:
    return np.zeros((0, transform.mask_side, transform.mask_side), dtype=np.float32)


def _stack(members: list[_SparsePrompt], transform: ImageTransform) -> PromptGroup:
    masks = [member.mask for member in members if member.mask is not None]
    return PromptGroup(
        indices=tuple(member.index for member in members),
        batch=PromptBatch(
            point_coords=np.stack([member.coords for member in members]),
            point_labels=np.stack([member.labels for member in members]),
            mask_input=np.stack(masks) if masks else _no_masks(transform),
        ),
    )
