"""Conversion of sources, prompts and options to protobuf."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
from google.protobuf.descriptor import FieldDescriptor

from samserve.client import coco_masks, images
from samserve.client.coco_masks import MaskLike
from samserve.client.images import ImageLike, Orientation, Upload
from samserve.client.polygons import PolygonOptions
from samserve.client.results import Embedding, EmbedOptions
from samserve.v1 import samserve_pb2 as pb

Source = Embedding | ImageLike
"""What to segment: an `Embedding` or its id (any ``str``), or an image (a path as ``Path``)."""

Multimask = Literal["auto", "all", "single"]
"""``auto``: one mask by the rule of the model's family; ``all``: three candidates, for SAM-HQ only
with the `HqMode` ``off``; ``single``: token 0."""

HqMode = Literal["added", "only", "off"]
"""How SAM-HQ's additional mask is used: ``added`` to the mask that `Multimask` selects, ``only`` in
place of it, or ``off``."""

MaskFormat = Literal["coco_rle", "uncompressed_rle", "binary_mask", "png", "polygons", "box"]
"""How masks are encoded; ``polygons`` approximate them, ``box`` has no pixels: see `Mask`."""

# The characters of ids; their content is opaque to the client.
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")

PointLike = tuple[float, float] | tuple[float, float, int]
BoxLike = tuple[float, float, float, float]

_MULTIMASKS = {
    "auto": pb.MULTIMASK_AUTO,
    "all": pb.MULTIMASK_ALL,
    "single": pb.MULTIMASK_SINGLE,
}
_HQ_MODES = {
    "added": pb.HQ_MODE_ADDED,
    "only": pb.HQ_MODE_ONLY,
    "off": pb.HQ_MODE_OFF,
}
_OUTPUT_MODES = {
    "coco_rle": pb.OUTPUT_MODE_COCO_RLE,
    "uncompressed_rle": pb.OUTPUT_MODE_UNCOMPRESSED_RLE,
    "binary_mask": pb.OUTPUT_MODE_BINARY_MASK,
    "png": pb.OUTPUT_MODE_PNG,
    "polygons": pb.OUTPUT_MODE_POLYGONS,
    "box": pb.OUTPUT_MODE_BOX,
}
_LABELS = {0: pb.Point.LABEL_BACKGROUND, 1: pb.Point.LABEL_FOREGROUND}
_FORMS = {
    FieldDescriptor.CPPTYPE_INT32: "an integer below 2**31",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_BOOL: "True or False",
}


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One object to segment: points, box and mask in any combination, at least one of them.

    ``points`` are ``(x, y)`` for a point on the object, or ``(x, y, label)`` with label 1 on the
    object and 0 on the background; ``box`` is ``(x0, y0, x1, y1)``; all in pixels of the image.
    ``mask`` is bool ``[h, w]`` over the whole image, or float32 low-res logits of an earlier result
    (`Mask.low_res_logits`).
    """

    points: Sequence[PointLike] = ()
    box: BoxLike | None = None
    mask: npt.NDArray[Any] | None = None


class AutoMaskOptions(TypedDict, total=False):
    """Options of ``automask`` by the names of the reference generators.

    Omitted options have the model's defaults (`Model.automask_defaults`).  ``point_grids`` are
    float ``[k, 2]`` in 0..1, one for each layer; ``region_of_interest`` is ``(x0, y0, x1, y1)`` in
    pixels of the image.  ``hq_mode`` is for models with the capability of that name.  ``exclude``
    are masks of what is annotated already, which does not return; see `MaskLike` for their forms.
    """

    points_per_side: int
    points_per_batch: int
    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    box_nms_thresh: float
    crop_n_layers: int
    crop_nms_thresh: float
    crop_overlap_ratio: float
    crop_n_points_downscale_factor: int
    point_grids: Sequence[npt.NDArray[Any]]
    min_mask_region_area: int
    region_of_interest: BoxLike
    max_masks: int
    multimask_output: bool
    use_m2m: bool
    hq_mode: HqMode
    exclude: Sequence[MaskLike]
    exclude_iou_thresh: float
    exclude_parts: bool


def embed_options(source: Source, orientation: Orientation | None) -> EmbedOptions:
    """Return the options with which the image of *source* was embedded, or is to be.

    Raises ``ValueError`` for an *orientation* that is invalid, or not that of the embedding.
    """
    if isinstance(source, Embedding):
        resolved = images.resolve_orientation(orientation, source.orientation)
        return EmbedOptions(resolved, source.durable, source.converted_from)
    return EmbedOptions(images.resolve_orientation(orientation, None))


def id_or_upload(source: Source, orientation: Orientation) -> str | Upload:
    """Return the id of an embedding, or an image ready to be sent; raises like `images.read`."""
    if isinstance(source, Embedding):
        return source.id
    return checked_id(source) if isinstance(source, str) else images.read(source, orientation)


def prompt_messages(prompts: Sequence[Prompt]) -> list[pb.Prompt]:
    """Convert prompts.

    Raises ``ValueError`` and ``TypeError``, which name the invalid part.
    """
    if isinstance(prompts, Prompt):
        raise TypeError("prompts must be a sequence: write [prompt] for a single one")
    _check_iterable(prompts, "prompts")
    return [_prompt(prompt, f"prompts[{index}]") for index, prompt in enumerate(prompts)]


def id_of(embedding: Embedding | str) -> str:
    """Return the id of an embedding, or check one; raises as `checked_id`."""
    return embedding.id if isinstance(embedding, Embedding) else checked_id(embedding)


def checked_id(text: str) -> str:
    """Return the id of an embedding.

    Raises ``ValueError`` for a text that is not an id, such as a file name.
    """
    if not isinstance(text, str):
        raise TypeError(f"an embedding id must be a str; got {type(text).__name__}")
    if not _ID.fullmatch(text):
        raise ValueError(
            f"{text[:200]!r} is not an embedding id (Embedding.id); pass an image file as "
            "pathlib.Path, or its bytes"
        )
    return text


def checked_model(name: str) -> str:
    """Return the name of a model; raises ``TypeError`` or ``ValueError`` if it is not text."""
    if not isinstance(name, str):
        raise TypeError(f"model must be a str, or '' for the default; got {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"model must be Unicode text, got {name[:200]!r}") from None
    return name


def multimask_value(multimask: Multimask) -> pb.Multimask.ValueType:
    """Convert the choice of candidates."""
    if not isinstance(multimask, str) or multimask not in _MULTIMASKS:
        raise ValueError(f"multimask must be 'auto', 'all' or 'single', got {multimask!r}")
    return _MULTIMASKS[multimask]


def hq_mode_value(mode: HqMode | None) -> pb.HqMode.ValueType:
    """Convert the use of SAM-HQ's mask; None is the default of the model's family."""
    if mode is None:
        return pb.HQ_MODE_UNSPECIFIED
    if not isinstance(mode, str) or mode not in _HQ_MODES:
        raise ValueError(f"hq_mode must be 'added', 'only', 'off' or None, got {mode!r}")
    return _HQ_MODES[mode]


def checked_logits(value: bool | Literal["only"]) -> bool | Literal["only"]:
    """Return *value*; raises ``ValueError`` if it is not True, False or ``only``."""
    if not (isinstance(value, bool) or (isinstance(value, str) and value == "only")):
        raise ValueError(f"low_res_logits must be True, False or 'only', got {_short(value)}")
    return value


def automask_message(options: AutoMaskOptions) -> pb.AutoMaskOptions:
    """Convert AutoMask options.

    Raises ``TypeError`` for an unknown name and ``ValueError`` for an invalid value.
    """
    known = pb.AutoMaskOptions.DESCRIPTOR.fields_by_name
    if unknown := sorted(set(options) - set(known)):
        raise TypeError(
            f"unknown AutoMask option: {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    values: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    region = values.pop("region_of_interest", None)
    grids = values.pop("point_grids", ())
    _check_iterable(grids, "point_grids")
    excluded = values.pop("exclude", ())
    _check_iterable(excluded, "exclude")
    if isinstance(excluded, Mapping):
        raise TypeError("exclude must be a sequence of masks: write [mask] for a single one")
    message = pb.AutoMaskOptions(
        hq_mode=hq_mode_value(values.pop("hq_mode", None)),
        region_of_interest=None if region is None else _box(region, "region_of_interest"),
        point_grids=[_grid(grid, f"point_grids[{index}]") for index, grid in enumerate(grids)],
        exclude=[
            coco_masks.from_mask(mask, f"exclude[{index}]") for index, mask in enumerate(excluded)
        ],
    )
    for name, value in values.items():
        try:
            setattr(message, name, value)
        except (TypeError, ValueError):
            form = _FORMS[known[name].cpp_type]
            raise ValueError(f"{name} must be {form}, got {reprlib.repr(value)}") from None
    return message


def output_mode_value(
    mask_format: MaskFormat | None, logits: bool | Literal["only"] = False
) -> pb.OutputMode.ValueType:
    """Return the output mode for masks in a format, or for logits only; None is ``coco_rle``.

    Raises ``ValueError`` for an unknown format, and for one with logits only.
    """
    if mask_format is not None and mask_format not in _OUTPUT_MODES:
        known = ", ".join(map(repr, _OUTPUT_MODES))
        raise ValueError(f"mask_format must be one of {known}; got {_short(mask_format)}")
    if logits != "only":
        return _OUTPUT_MODES[mask_format or "coco_rle"]
    if mask_format is not None:
        raise ValueError("mask_format has no meaning with low_res_logits='only'")
    return pb.OUTPUT_MODE_LOW_RES_LOGITS


def polygon_message(options: PolygonOptions | None) -> pb.PolygonOptions | None:
    """Convert options of polygons; raises ``TypeError`` or ``ValueError``."""
    if options is None:
        return None
    if not isinstance(options, PolygonOptions):
        raise TypeError(f"polygon_options must be PolygonOptions, got {_short(options)}")
    try:
        return pb.PolygonOptions(tolerance=options.tolerance, min_area=options.min_area)
    except (TypeError, ValueError):
        raise ValueError(
            "polygon_options must have a number as tolerance and an integer below 2**31 as "
            f"min_area; got {_short(options)}"
        ) from None


def area_value(value: int, name: str) -> int:
    """Return a number of pixels; raises ``ValueError`` if it is none that the protocol has."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise ValueError(f"{name} must be an integer from 0, below 2**31; got {_short(value)}")
    return value


def switch_value(value: bool, name: str) -> bool:
    """Return a switch; raises ``ValueError`` if it is neither True nor False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {_short(value)}")
    return value


def _prompt(prompt: Prompt, name: str) -> pb.Prompt:
    if not isinstance(prompt, Prompt):
        raise TypeError(f"{name} must be a Prompt, got {type(prompt).__name__}")
    _check_iterable(prompt.points, f"{name}.points")
    return pb.Prompt(
        points=[
            _point(point, f"{name}.points[{index}]") for index, point in enumerate(prompt.points)
        ],
        box=None if prompt.box is None else _box(prompt.box, f"{name}.box"),
        mask=None if prompt.mask is None else _mask(prompt.mask, f"{name}.mask"),
    )


def _point(point: PointLike, name: str) -> pb.Point:
    try:
        x, y, label = point if len(point) == 3 else (*point, 1)
        message = pb.Point(x=x, y=y)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be (x, y) or (x, y, label), got {_short(point)}") from None
    if label not in (0, 1):
        raise ValueError(f"{name}: the label must be 1 (on the object) or 0, got {label!r}")
    message.label = _LABELS[int(label)]
    return message


def _box(box: BoxLike, name: str) -> pb.Box:
    try:
        x_min, y_min, x_max, y_max = box
        return pb.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be (x0, y0, x1, y1), got {_short(box)}") from None


def _mask(mask: npt.NDArray[Any], name: str) -> pb.MaskInput:
    if not isinstance(mask, np.ndarray):
        raise TypeError(f"{name} must be a numpy array, got {type(mask).__name__}")
    if mask.ndim == 2 and mask.dtype == np.bool_:
        return pb.MaskInput(binary=coco_masks.from_pixels(mask))
    if mask.ndim == 2 and mask.dtype == np.float32 and mask.shape[0] == mask.shape[1]:
        return pb.MaskInput(low_res_logits=mask.astype("<f4").tobytes())
    raise ValueError(
        f"{name} must be bool [h, w] of the image's size or float32 low-res logits [n, n], "
        f"got {mask.dtype} {list(mask.shape)}"
    )


def _grid(grid: npt.NDArray[Any], name: str) -> pb.PointGrid:
    points = np.asarray(grid)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"{name} must be float [k, 2], got {_short(grid)}")
    return pb.PointGrid(points=[pb.NormalizedPoint(x=x, y=y) for x, y in points])


def _check_iterable(values: object, name: str) -> None:
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence, got {_short(values)}")


def _short(value: object) -> str:
    """Return a short text of an invalid value."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return reprlib.repr(value)
