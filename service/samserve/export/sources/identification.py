"""Which family a checkpoint belongs to, by the names of its tensors or by its configuration."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from samserve.export.errors import ExportError
from samserve.export.sources.files import shown

SUPPORTED = "SAM, MobileSAM, SAM-HQ, SAM 2, SAM 2.1 and EdgeTAM"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of checkpoint.

    ``names`` is the pattern of names that only this kind has; ``lacks`` of names that it never has.
    ``types`` are types of models in configurations of the transformers library.  ``loader`` is the
    first of them if the kind is supported, else empty; ``cure`` is what users can do about one that
    is not.
    """

    title: str
    names: str
    types: tuple[str, ...] = ()
    loader: str = ""
    lacks: str = ""
    cure: str = ""


_HQ = r"(hf_token|hf_mlp|hq_token|hq_mask_mlp)\."

KINDS = (
    Kind(
        "a model with adapters or LoRA",
        r"[^.]*([Aa]dapter|lora_)",
        cure="merge them into the weights first",
    ),
    Kind("SAM 3.1", r"interactive_(\w*_)?(mask_decoder|prompt_encoder|convs|mem|obj)"),
    Kind(
        "SAM 3 or SAM 3.1",
        r"detector(_model)?\.(backbone|vision_encoder|text_encoder|geometry_encoder|transformer)\."
        r"|tracker(_model)?\.(sam_|maskmem_|mask_decoder|prompt_encoder|vision_encoder|model\.)"
        r"|(vision_backbone|language_backbone|maskmem_backbone|geometry_encoder|detr_encoder)\."
        r"|vision_encoder\.(neck\.fpn_layers|backbone\.layers)\.",
        (
            *("sam3", "sam3_video", "sam3_tracker", "sam3_tracker_video"),
            *("sam3_lite_text", "sam3_lite_text_video", "sam3_vision_model"),
        ),
    ),
    Kind("HQ-SAM 2", r"sam_mask_decoder\.(hf_|hq_|compress_vit_feat|embedding_encoder)"),
    Kind(
        "EfficientTAM",
        r"image_encoder\.trunk\.",
        lacks=r"trunk\.(pos_embed_window|body\.)|sam_mask_decoder\.conv_s0\.",
    ),
    Kind(
        "EfficientSAM",
        r"prompt_encoder\.invalid_points|mask_decoder\.final_output_upscaling",
    ),
    Kind("EfficientViT-SAM", r"image_encoder\.backbone\."),
    Kind("EdgeSAM or RepViT-SAM", r"image_encoder\.features\."),
    Kind(
        "EdgeTAM",
        r"image_encoder\.trunk\.body\.|vision_encoder\.backbone\.timm_model\.",
        ("edgetam", "edgetam_video"),
        "edgetam",
    ),
    Kind(
        "SAM 2",
        r"image_encoder\.trunk\.|vision_encoder\.backbone\.(blocks|patch_embed|pos_embed)",
        ("sam2", "sam2_video"),
        "sam2",
    ),
    Kind("SAM-HQ", rf"mask_decoder\.{_HQ}", ("sam_hq",), "sam_hq"),
    Kind(
        "SAM",
        r"image_encoder\.(blocks|layers)\.|vision_encoder\.(layers|pos_embed)",
        ("sam",),
        "sam",
    ),
    Kind(
        "SAM 2 or SAM 3 without its image encoder",
        r"sam_mask_decoder\.|memory_(attention|encoder)\.|mask_decoder\.obj_score_token",
    ),
)
"""In the order in which they are tried: the first that has and lacks what it should is the one."""

_NETWORKS = (
    *("image_encoder", "vision_encoder", "prompt_encoder", "mask_decoder"),
    *("sam_prompt_encoder", "sam_mask_decoder", "shared_image_embedding"),
)
_PREFIX = re.compile(rf"(?P<prefix>(?:[^.]+\.)*?)(?:{'|'.join(_NETWORKS)})\.")
"""What precedes the name of a network, whatever the kind of the checkpoint."""

_TRAINING = frozenset(
    (
        *("module", "model", "net", "network", "_orig_mod", "_forward_module"),
        *("sam", "sam2", "sam_model"),
    )
)
"""The parts of prefixes that training programs add to every name."""


def of_type(model_type: object) -> Kind | None:
    """Return the kind of a type of models in configurations, None if it is unknown."""
    return next((kind for kind in KINDS if model_type in kind.types), None)


def of_names(names: Collection[str]) -> Kind:
    """Return the supported kind that tensors belong to.

    Raises `ExportError` for another kind, which is named if it is known.
    """
    for kind in KINDS:
        found = next((name for name in names if re.search(rf"(^|\.)({kind.names})", name)), None)
        if found is None or (kind.lacks and any(re.search(kind.lacks, name) for name in names)):
            continue
        if not kind.loader:
            raise ExportError(unsupported(kind, found))
        return kind
    some = ", ".join(list(names)[:3])
    raise ExportError(
        f"this is not a SAM: its {len(names)} tensors are named {shown(some)} ...; "
        f"supported are {SUPPORTED}"
    )


def unsupported(kind: Kind, found: str) -> str:
    """Return why a checkpoint cannot be exported: what it looks like, and because of what."""
    cure = f"; {kind.cure}" if kind.cure else ""
    return f"this looks like {kind.title} ({shown(found)}); supported are {SUPPORTED}{cure}"


def training_prefix(names: Collection[str]) -> str:
    """Return the prefix that a training program added to all *names*, empty if there is none.

    Raises `ExportError` for one that only some names have, or that is not a usual one: its text has
    the option that selects it.
    """
    prefixes = list(
        dict.fromkeys(match["prefix"] for name in names if (match := _PREFIX.match(name)))
    )
    if not prefixes or "" in prefixes:
        return ""
    if len(prefixes) > 1:
        listed = ", ".join(repr(shown(prefix)) for prefix in prefixes[:4])
        raise ExportError(f"there are networks under {listed}: choose one with --prefix")
    (prefix,) = prefixes
    option = f"--prefix {shown(prefix)}"
    others = [name for name in names if not name.startswith(prefix)]
    if others:
        raise ExportError(
            f"{len(others)} of {len(names)} names lack {shown(prefix)!r}, such as "
            f"{shown(others[0])}: add {option} to leave them out"
        )
    if not _TRAINING.issuperset(prefix.rstrip(".").split(".")):
        raise ExportError(f"all names begin with {shown(prefix)!r}: add {option}")
    return prefix
