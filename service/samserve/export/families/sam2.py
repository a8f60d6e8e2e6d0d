"""SAM 2, SAM 2.1 and EdgeTAM, on the classes of the transformers library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samserve.export.families.base import CUSTOM, Naming, Network, Shapes, load_tensors
from samserve.export.families.transformers_graphs import (
    Normalise,
    PromptEmbedding,
    TwoWayDecoding,
    by_prompt,
    mixed,
    of_image,
)
from samserve.export.sources.source import Checkpoint
from samserve.models import families

_PARTS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
"""The parts of a configuration that matter for images."""

_VIDEO_ONLY = (
    r"(memory_|mask_downsample|object_pointer_proj|temporal_positional_encoding_projection_layer"
    r"|no_memory_positional_encoding|no_object_pointer|occlusion_spatial_embedding_parameter"
    r"|spatial_perceiver)"
)
"""Beginnings of the names of tensors that only videos need, in the transformers library."""

HIGH_RES_0, HIGH_RES_1, EMBEDDING = "high_res_0", "high_res_1", "image_embedding"


class Sam2Network(Network):
    """The networks of a `Sam2Model` or `EdgeTamModel`."""

    family = families.SAM2

    def __init__(self, model: Any, *, title: str, variant: str, name: str, naming: Naming) -> None:
        self.model = model
        self.title, self.variant, self.name, self.naming = title, variant, name, naming
        prompts, decoder = model.config.prompt_encoder_config, model.config.mask_decoder_config
        side = prompts.image_size
        width, grid = decoder.hidden_size, side // prompts.patch_size
        self.shapes = Shapes(
            side,
            4 * grid,
            {
                HIGH_RES_0: (width // 8, 4 * grid, 4 * grid),
                HIGH_RES_1: (width // 4, 2 * grid, 2 * grid),
                EMBEDDING: (width, grid, grid),
            },
        )
        self.parameters: Mapping[str, str] = {}
        if decoder.dynamic_multimask_via_stability:
            self.parameters = {
                "multimask_stability_delta": repr(decoder.dynamic_multimask_stability_delta),
                "multimask_stability_thresh": repr(decoder.dynamic_multimask_stability_thresh),
            }

    def encoder_graph(self) -> nn.Module:
        """See `Network.encoder_graph`."""
        return EncoderGraph(self.model)

    def decoder_graph(self) -> nn.Module:
        """See `Network.decoder_graph`."""
        return DecoderGraph(self.model, self.shapes.image_size)

    def encoder_modules(self) -> Sequence[nn.Module]:
        """See `Network.encoder_modules`."""
        decoder = self.model.mask_decoder
        return [self.model.vision_encoder, decoder.conv_s0, decoder.conv_s1]


def load(checkpoint: Checkpoint) -> Sam2Network:
    """Build the networks for images of a model for images or videos.  Raises `ExportError`."""
    from transformers import AutoModel, Sam2Config  # noqa: PLC0415  (slow, and rarely needed)

    assert checkpoint.config is not None
    config = Sam2Config(**{part: checkpoint.config[part] for part in _PARTS})
    with torch.device("meta"):
        model = AutoModel.from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
    state = {
        name: value for name, value in checkpoint.tensors.items() if not re.match(_VIDEO_ONLY, name)
    }
    load_tensors(model, state, "SAM 2")
    return Sam2Network(model, title="SAM 2", variant=CUSTOM, name="", naming=Naming.TRANSFORMERS)


class EncoderGraph(nn.Module):
    """Image to embedding, with everything that does not depend on the prompt."""

    no_memory: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.vision_encoder = model.vision_encoder
        self.conv_s0, self.conv_s1 = model.mask_decoder.conv_s0, model.mask_decoder.conv_s1
        self.dtype = self.conv_s0.weight.dtype
        no_memory = model.no_memory_embedding.detach().reshape(1, -1, 1, 1)
        self.register_buffer("no_memory", no_memory)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return ``high_res_0``, ``high_res_1`` and ``image_embedding``, as float16 and float32."""
        planes = self.normalise(image).to(self.dtype)
        fine, middle, coarse = self.vision_encoder(planes, return_dict=True).fpn_hidden_states
        embedding = (
            self.conv_s0(fine),
            self.conv_s1(middle),
            coarse.float() + self.no_memory,
        )
        return (*(each.half() for each in embedding), *(each.float() for each in embedding))


class DecoderGraph(nn.Module):
    """Embeddings and prompts to all masks; see `Network.decoder_graph` for shapes."""

    def __init__(self, model: Any, image_size: int) -> None:
        super().__init__()
        decoder, prompts = model.mask_decoder, model.prompt_encoder
        kinds = [prompts.not_a_point_embed.weight, prompts.point_embed.weight]
        self.prompts = PromptEmbedding(prompts, kinds, image_size)
        outputs = [
            each.weight
            for each in (decoder.obj_score_token, decoder.iou_token, decoder.mask_tokens)
        ]
        positions = model.get_image_wide_positional_embeddings()
        self.decoding = TwoWayDecoding(decoder.transformer, torch.cat(outputs), positions)
        self.decoder = decoder

    def forward(
        self,
        high_res_0: Tensor,
        high_res_1: Tensor,
        image_embedding: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, predicted IoU and the logit of the object score."""
        decoder = self.decoder
        sparse = self.prompts.embed_points(point_coords, point_labels)
        dense = self.prompts.embed_masks(mask_input, point_coords.shape[1])
        tokens, planes = self.decoding(image_embedding.float(), sparse, dense)
        planes = of_image(high_res_1.float(), decoder.upscale_conv1(planes), point_coords)
        planes = decoder.activation(decoder.upscale_layer_norm(planes))
        planes = of_image(high_res_0.float(), decoder.upscale_conv2(planes), point_coords)
        # Token 0 estimates whether there is an object, 1 predicts the IoU, 2 to 5 the masks.
        mlps = decoder.output_hypernetworks_mlps
        logits = mixed(mlps, tokens[:, 2:], decoder.activation(planes))
        iou = decoder.iou_prediction_head(tokens[:, 1])
        score = decoder.pred_obj_score_head(tokens[:, 0])
        return (
            by_prompt(logits, point_coords),
            by_prompt(iou, point_coords),
            by_prompt(score, point_coords),
        )
