"""Naming schemes of SAM-HQ checkpoints, and the conversion to the original names.

The tensors that SAM-HQ adds to a SAM are in its mask decoder; the others have the names of SAM 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from samserve.export.errors import ExportError
from samserve.export.families import sam1_names
from samserve.export.families.base import Naming
from samserve.export.sources.files import State, shown

_PARTS: Mapping[str, str] = {
    "hq_token": "hf_token",
    "hq_mask_mlp.proj_in": "hf_mlp.layers.0",
    "hq_mask_mlp.layers.0": "hf_mlp.layers.1",
    "hq_mask_mlp.proj_out": "hf_mlp.layers.2",
    "compress_vit_conv1": "compress_vit_feat.0",
    "compress_vit_norm": "compress_vit_feat.1",
    "compress_vit_conv2": "compress_vit_feat.3",
    "encoder_conv1": "embedding_encoder.0",
    "encoder_norm": "embedding_encoder.1",
    "encoder_conv2": "embedding_encoder.3",
    "mask_conv1": "embedding_maskfeature.0",
    "mask_norm": "embedding_maskfeature.1",
    "mask_conv2": "embedding_maskfeature.3",
}
"""Names in the transformers library and original names: between ``mask_decoder.`` and the last."""

_ADDED = re.compile(
    r"mask_decoder\.(hf_token|hf_mlp|compress_vit_feat|embedding_encoder|embedding_maskfeature"
    r"|hq_token|hq_mask_mlp|compress_vit_\w+|encoder_(conv[12]|norm)|mask_(conv[12]|norm))\."
)


def original_names(tensors: Mapping[str, Tensor]) -> tuple[Naming, State]:
    """Return the previous naming scheme, and the tensors under the names of original checkpoints.

    Tensors that a SAM-HQ does not use are removed.  Raises `ExportError` for other models.
    """
    added = {name: value for name, value in tensors.items() if _ADDED.match(name)}
    rest = {name: value for name, value in tensors.items() if name not in added}
    naming, state = sam1_names.original_names(rest)
    if naming is Naming.TRANSFORMERS:
        added = {_renamed(name): value for name, value in added.items()}
    return naming, {**state, **added}


def _renamed(name: str) -> str:
    start, _, last = name.rpartition(".")
    prefix, _, part = start.partition(".")
    if part not in _PARTS:
        raise ExportError(f"not a SAM-HQ of the transformers library: unexpected {shown(name)}")
    return f"{prefix}.{_PARTS[part]}.{last}"
