"""The exported graphs of SAM 2 and EdgeTAM, on the modules of the transformers library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from samserve.export.decoder.survivors import Survivors
from samserve.export.decoder.two_way import to_cells
from samserve.export.decoder.upscaling import Upscaling, by_cell, mixed, to_planes
from samserve.export.families.transformers_graphs import Normalise, PromptEmbedding, two_way

LEVELS = 3
"""The feature maps that are used; the neck computes a fourth, coarser one."""


class HieraTrunk(nn.Module):
    """The image encoder of SAM 2: normalised images to feature maps ``[B,h,w,C]`` of its stages."""

    positions: Tensor

    def __init__(self, backbone: Any, grid: int) -> None:
        super().__init__()
        self.patch_embed, self.blocks = backbone.patch_embed, backbone.blocks
        self.ends = tuple(backbone.stage_ends)
        # Constant for an image size: the graph does not resize it with every image.
        positions = backbone._get_pos_embed((4 * grid, 4 * grid)).detach()
        self.register_buffer("positions", positions)

    def forward(self, planes: Tensor) -> list[Tensor]:
        """Return the last tokens of every stage, the finest first."""
        tokens = self.patch_embed(planes)
        tokens = tokens + self.positions.to(tokens.dtype)
        stages = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in self.ends:
                stages.append(tokens)
        return stages


class TimmTrunk(nn.Module):
    """The image encoder of EdgeTAM: as `HieraTrunk`."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.timm_model = backbone.timm_model

    def forward(self, planes: Tensor) -> list[Tensor]:
        """Return the feature maps of every stage, the finest first."""
        return [each.permute(0, 2, 3, 1) for each in self.timm_model(planes)]


class EncoderGraph(nn.Module):
    """Image to embedding, with everything that does not depend on the prompt."""

    no_memory: Tensor

    def __init__(self, model: Any, trunk: nn.Module) -> None:
        super().__init__()
        self.normalise, self.trunk = Normalise(), trunk
        self.neck = model.vision_encoder.neck
        self.conv_s0, self.conv_s1 = model.mask_decoder.conv_s0, model.mask_decoder.conv_s1
        self.dtype = self.conv_s0.weight.dtype
        no_memory = model.no_memory_embedding.detach().reshape(1, -1, 1, 1)
        self.register_buffer("no_memory", no_memory)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return ``high_res_0``, ``high_res_1`` and ``image_embedding``, as float16 and float32."""
        planes = self.normalise(image).to(self.dtype)
        coarsest_first, _positions = self.neck(self.trunk(planes))
        coarse, middle, fine = coarsest_first[-LEVELS:]
        embedding = (
            self.conv_s0(fine),
            self.conv_s1(middle),
            coarse.float() + self.no_memory,
        )
        return (*(each.half() for each in embedding), *(each.float() for each in embedding))


class DecoderGraph(nn.Module):
    """Embeddings and prompts to all masks; see `Network.decoder_graph` for shapes."""

    outputs: Tensor
    positions: Tensor

    def __init__(self, model: Any, image_size: int) -> None:
        super().__init__()
        decoder, prompts = model.mask_decoder, model.prompt_encoder
        kinds = [prompts.not_a_point_embed.weight, prompts.point_embed.weight]
        self.prompts = PromptEmbedding(prompts, kinds, image_size)
        outputs = [decoder.obj_score_token, decoder.iou_token, decoder.mask_tokens]
        self.register_buffer("outputs", torch.cat([each.weight for each in outputs]).detach())
        positions = model.get_image_wide_positional_embeddings()
        self.register_buffer("positions", positions.flatten(2).transpose(1, 2).detach())
        self.transformer, self.decoder = two_way(decoder.transformer), decoder
        self.grid = positions.shape[2]
        self.upscaling = Upscaling(
            decoder.upscale_conv1, decoder.upscale_layer_norm, decoder.upscale_conv2, self.grid
        )

    def forward(  # noqa: PLR0913, PLR0917 - each is an input of the graph
        self,
        high_res_0: Tensor,
        high_res_1: Tensor,
        image_embedding: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        iou_threshold: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, predicted IoU and the logit of the object score."""
        decoder = self.decoder
        tokens = self.tokens(point_coords, point_labels)
        dense = self.prompts.embed_masks(mask_input, point_coords.shape[1])
        cells = to_cells(image_embedding) + dense
        tokens, cells = self.transformer(cells, self.positions, tokens)
        # Token 0 estimates whether there is an object, 1 predicts the IoU, 2 to 5 the masks.
        iou = decoder.iou_prediction_head(tokens[:, :, 1])
        survivors = Survivors.of(iou, iou_threshold)
        pixels = self.upscaling.pixels(
            survivors.take(cells),
            # Moved as float16, which is half of the bytes.
            survivors.of_image(by_cell(high_res_1, self.grid)).float(),
            survivors.of_image(by_cell(high_res_0, self.grid)).float(),
        )
        mlps = decoder.output_hypernetworks_mlps
        mixes = mixed(mlps, survivors.take(tokens)[:, 2:])
        logits = to_planes(mixes @ pixels.transpose(1, 2), len(mlps), self.grid)
        return survivors.scatter(logits), iou, decoder.pred_obj_score_head(tokens[:, :, 0])

    def tokens(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Return output tokens and those of the points: ``[B,P,6+N,C]``."""
        outputs = self.outputs.expand(coords.shape[0], coords.shape[1], *self.outputs.shape)
        return torch.cat([outputs, self.prompts.embed_points(coords, labels)], 2)
