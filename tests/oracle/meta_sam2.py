"""SAM 2 of facebookresearch/sam2 1.1.0: its networks, predictor, generator and checkpoints.

The package lies in a folder of its own in the virtual environment, since it also installs a top
level package ``training``. Its ``__init__`` and builder need hydra, its trunk names iopath and its
transforms torchvision: stand-ins take their places, and networks are built here, in code.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from tests.oracle import torchvision_shim
from tests.oracle.redraw import redraw
from tests.oracle.sam2 import TOY, Sam2Size

MEMORY_WIDTH = 64
LEVELS = (4, 2, 1)
"""Cells of the tensors of an embedding per cell of the grid."""


def install() -> None:
    """Make ``import sam2`` find the modules of the package; call before imports that need them."""
    if "sam2" in sys.modules:
        return
    torchvision_shim.install()
    package = ModuleType("sam2")
    package.__path__ = [str(Path(sys.prefix) / "sam2" / "sam2")]
    file_io = ModuleType("iopath.common.file_io")
    vars(file_io).update(g_pathmgr=None)
    parents = {each: ModuleType(each) for each in ("iopath", "iopath.common")}
    sys.modules.update({**parents, file_io.__name__: file_io, "sam2": package})


def configured_trunk(version: str, letter: str) -> dict[str, Any]:
    """Return the arguments of the Hiera of a published size: t, s, b+ or l."""
    folder = Path(_module("modeling.sam2_base").__file__).parents[1] / "configs" / f"sam{version}"
    content = yaml.safe_load((folder / f"sam{version}_hiera_{letter}.yaml").read_text())
    hiera = _module("modeling.backbones.hieradet").Hiera
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(hiera).parameters.items()
    }
    trunk: dict[str, Any] = content["model"]["image_encoder"]["trunk"]
    return {**defaults, **trunk}


def _module(name: str) -> Any:
    """Import a module of the package."""
    install()
    return importlib.import_module(f"sam2.{name}")


def build(size: Sam2Size = TOY, seed: int = 0, *, version: str = "2.1") -> Any:
    """Build a SAM2Base with seeded weights, see `redraw`.

    ``version`` is 2.1 or 2; their networks for images are equal.
    """
    sam = unseeded(size, version=version)
    redraw(sam, seed)
    return sam.eval().requires_grad_(False)


def unseeded(size: Sam2Size, *, version: str = "2.1", trunk: nn.Module | None = None) -> Any:
    """Build a SAM2Base as ``build_sam.py`` sets it up, also on the meta device.

    A ``trunk`` replaces the Hiera of that size.
    """
    base = _module("modeling.sam2_base")
    is_new = version == "2.1"
    sam = base.SAM2Base(
        _image_encoder(size, trunk or _hiera(size)),
        _memory_attention(size),
        _memory_encoder(size),
        image_size=16 * size.grid,
        sigmoid_scale_for_mem_enc=20.0,
        sigmoid_bias_for_mem_enc=-10.0,
        use_mask_input_as_output_without_sam=True,
        directly_add_no_mem_embed=True,
        no_obj_embed_spatial=is_new,
        use_high_res_features_in_sam=True,
        multimask_output_in_sam=True,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        add_tpos_enc_to_obj_ptrs=is_new,
        proj_tpos_enc_in_obj_ptrs=is_new,
        use_signed_tpos_enc_to_obj_ptrs=is_new,
        only_obj_ptrs_in_the_past_for_eval=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        fixed_no_obj_ptr=True,
        multimask_output_for_tracking=True,
        use_multimask_token_for_obj_ptr=True,
        multimask_min_pt_num=0,
        multimask_max_pt_num=1,
        use_mlp_for_obj_ptr_proj=True,
    )
    sam.sam_mask_decoder = _mask_decoder(size)
    return sam


def save(sam: nn.Module, path: Path) -> Path:
    """Write a checkpoint as Meta does: all weights, under the key ``model``."""
    torch.save({"model": sam.state_dict()}, path)
    return path


def predictor(sam: Any, **options: Any) -> Any:
    """Return a SAM2ImagePredictor for any size of model."""
    return _adapted(_module("sam2_image_predictor").SAM2ImagePredictor, sam, options)


def generator(sam: Any, **options: Any) -> Any:
    """Return a SAM2AutomaticMaskGenerator for any size of model."""
    return _adapted(_module("automatic_mask_generator").SAM2AutomaticMaskGenerator, sam, options)


def embed(sam: Any, planes: Tensor) -> dict[str, Tensor]:
    """Compute the tensors of the embeddings of normalised images ``[B,3,S,S]``, float32.

    As ``set_image_batch`` does after its transform.
    """
    made = predictor(sam)
    # The images only have to be of the right number; their transform returns the given planes.
    made._transforms.forward_batch = lambda _images: planes
    made.set_image_batch([np.zeros((1, 1, 3), np.uint8)] * len(planes))
    fine, middle = made._features["high_res_feats"]
    coarse = made._features["image_embed"]
    return {"high_res_0": fine, "high_res_1": middle, "image_embedding": coarse}


def decode(
    sam: Any, embedding: Mapping[str, Tensor], coords: Tensor, labels: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode P prompts on one image with the original's modules: all tokens, one prompt at a time.

    ``coords`` ``[P,n,2]`` in model pixels and ``labels`` ``[P,n]`` are without padding, ``mask`` is
    ``[P,1,L,L]``. Returns logits ``[P,4,L,L]``, predicted IoU ``[P,4]`` and the logit of the object
    score ``[P,1]``.
    """
    prompts, decoder = sam.sam_prompt_encoder, sam.sam_mask_decoder
    outputs = []
    for each in range(len(coords)):
        one = slice(each, each + 1)
        sparse, dense = prompts(
            points=(coords[one], labels[one]),
            boxes=None,
            masks=None if mask is None else mask[one],
        )
        masks, iou, _, score = decoder.predict_masks(
            image_embeddings=embedding["image_embedding"],
            image_pe=prompts.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            repeat_image=False,
            high_res_features=[embedding["high_res_0"], embedding["high_res_1"]],
        )
        outputs.append((masks, iou, score))
    logits, ious, scores = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    return logits, ious, scores


def _adapted(kind: Any, sam: Any, options: Mapping[str, Any]) -> Any:
    with warnings.catch_warnings():
        # Its transform is scripted, which torch deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        made = kind(sam, **options)
    grid = sam.image_size // sam.backbone_stride
    # A constant of the published sizes.
    getattr(made, "predictor", made)._bb_feat_sizes = [
        (level * grid, level * grid) for level in LEVELS
    ]
    return made


def _hiera(size: Sam2Size) -> Any:
    hieradet = _module("modeling.backbones.hieradet")
    # It reads values of a range, which the meta device does not have.
    on_cpu = functools.partial(torch.linspace, device="cpu")
    with mock.patch.object(hieradet.torch, "linspace", on_cpu):
        return hieradet.Hiera(
            embed_dim=size.width,
            num_heads=size.heads,
            stages=size.blocks,
            window_pos_embed_bkg_spatial_size=(size.background, size.background),
            window_spec=size.windows,
            global_att_blocks=size.global_blocks,
        )


def _image_encoder(size: Sam2Size, trunk: Any) -> Any:
    parts = _module("modeling.backbones.image_encoder")
    neck = parts.FpnNeck(
        _position(size.channels),
        size.channels,
        trunk.channel_list,
        fpn_interp_model="nearest",
        fpn_top_down_levels=[2, 3],
    )
    return parts.ImageEncoder(trunk, neck, scalp=1)


def _mask_decoder(size: Sam2Size) -> Any:
    """Build the decoder as SAM2Base does, but in any size."""
    return _module("modeling.sam.mask_decoder").MaskDecoder(
        transformer=_module("modeling.sam.transformer").TwoWayTransformer(
            depth=2, embedding_dim=size.channels, mlp_dim=size.mlp_dim, num_heads=8
        ),
        transformer_dim=size.channels,
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=size.channels,
        use_high_res_features=True,
        iou_prediction_use_sigmoid=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        use_multimask_token_for_obj_ptr=True,
        dynamic_multimask_via_stability=True,
        dynamic_multimask_stability_delta=0.05,
        dynamic_multimask_stability_thresh=0.98,
    )


def _memory_attention(size: Sam2Size) -> Any:
    attention = _module("modeling.sam.transformer").RoPEAttention
    kind, sizes = {"embedding_dim": size.channels, "num_heads": 1}, [size.grid, size.grid]
    memory = _module("modeling.memory_attention")
    layer = memory.MemoryAttentionLayer(
        activation="relu",
        cross_attention=attention(
            rope_k_repeat=True, feat_sizes=sizes, kv_in_dim=MEMORY_WIDTH, **kind
        ),
        d_model=size.channels,
        dim_feedforward=size.mlp_dim,
        dropout=0.1,
        pos_enc_at_attn=False,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        self_attention=attention(feat_sizes=sizes, **kind),
    )
    return memory.MemoryAttention(size.channels, True, layer, num_layers=4)


def _memory_encoder(size: Sam2Size) -> Any:
    memory = _module("modeling.memory_encoder")
    # Its kernels end in as many channels as the features.
    masks = memory.MaskDownSampler(size.channels, kernel_size=3, stride=2, padding=1)
    block = memory.CXBlock(size.channels, kernel_size=7, padding=3)
    return memory.MemoryEncoder(
        MEMORY_WIDTH, masks, memory.Fuser(block, 2), _position(MEMORY_WIDTH), in_dim=size.channels
    )


def _position(width: int) -> Any:
    return _module("modeling.position_encoding").PositionEmbeddingSine(width)
