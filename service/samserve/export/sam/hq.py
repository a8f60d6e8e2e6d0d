"""SAM-HQ: a SAM whose decoder has an additional mask token, with features of its own.

Source: Ke et al., "Segment Anything in High Quality" (2023), and the original code,
segment-anything-hq 0.3, `modeling/mask_decoder_hq.py`.  State dict keys are those of its
checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from samserve.export.decoder.survivors import Survivors
from samserve.export.decoder.upscaling import normalised, to_planes
from samserve.export.sam.config import SamConfig, TinyVitConfig
from samserve.export.sam.graphs import DecoderGraph, EncoderGraph
from samserve.export.sam.layers import LayerNorm2d, Mlp
from samserve.export.sam.mask_decoder import MASKS, MaskDecoder
from samserve.export.sam.model import Sam


class HqMaskDecoder(MaskDecoder):
    """Decodes prompts, each as one row n of its inputs, to the masks of five tokens."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__(config)
        width, sizes = config.channels, config.encoder
        early = sizes.widths[2] if isinstance(sizes, TinyVitConfig) else sizes.embed_dim
        self.hf_token = nn.Embedding(1, width)
        self.hf_mlp = Mlp(width, width, width // 8, 3)
        self.compress_vit_feat = _upscaling(early, width, width // 8)
        self.embedding_encoder = _upscaling(width, width // 4, width // 8)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(width // 8, width // 4, 3, padding=1),
            LayerNorm2d(width // 4),
            nn.GELU(),
            nn.Conv2d(width // 4, width // 8, 3, padding=1),
        )

    def output_tokens(self) -> Tensor:
        """Return the tokens that precede those of a prompt: ``[6,256]``."""
        return torch.cat([super().output_tokens(), self.hf_token.weight])

    def hq_mask(self, tokens: Tensor, pixels: Tensor, features: Tensor) -> Tensor:
        """Return the HQ token's logits ``[n,1,4*grid,4*grid]``.

        ``tokens`` and ``pixels`` as for `masks`, ``features`` ``[n,32,(4*grid)**2]`` the HQ
        features of the image; n may be 1 for these.  The mix of a sum of features is the sum of
        the mixes, so that the HQ features are not added to every prompt's.
        """
        mix: Tensor = self.hf_mlp(tokens[:, 1 + MASKS]).unsqueeze(1)
        side = 4 * self.grid
        given = (mix @ features).reshape(mix.shape[0], 1, side, side)
        return self._mixed_convolution(mix, pixels) + given

    def _mixed_convolution(self, mix: Tensor, pixels: Tensor) -> Tensor:
        """Return `embedding_maskfeature` of *pixels*, mixed: ``[n,1,4*grid,4*grid]``.

        The last convolution and the mix ``[n,1,32]`` are one convolution with a kernel per prompt.
        It is computed as a product for each of its 3 x 3 taps, and the sum of shifted products.
        """
        layers: Any = self.embedding_maskfeature
        first, norm, _, last = layers
        side, hidden = 4 * self.grid, last.in_channels
        planes = to_planes(pixels.transpose(1, 2), first.in_channels, self.grid)
        count = planes.shape[0]
        # Every length is explicit: one that is derived in the traced graph fails if n is 0.
        features = first(planes).reshape(count, hidden, side * side).transpose(1, 2)
        features = functional.gelu(normalised(norm, features))
        weight = last.weight.permute(0, 2, 3, 1).reshape(last.out_channels, 9 * hidden)
        kernels = (mix @ weight).reshape(count, 9, hidden)
        taps = kernels @ features.transpose(1, 2)
        shifted = functional.conv2d(
            taps.reshape(count, 9, side, side), torch.eye(9).reshape(1, 9, 3, 3), padding=1
        )
        result: Tensor = shifted + (mix @ last.bias).unsqueeze(2).unsqueeze(3)
        return result


def _upscaling(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Planes ``[n,inputs,h,w]`` to ``[n,outputs,4*h,4*w]``."""
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, hidden, 2, stride=2),
        LayerNorm2d(hidden),
        nn.GELU(),
        nn.ConvTranspose2d(hidden, outputs, 2, stride=2),
    )


class SamHq(Sam):
    """The three networks of a SAM-HQ."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__(config)
        self.mask_decoder: HqMaskDecoder = HqMaskDecoder(config)


class HqEncoderGraph(EncoderGraph):
    """Image to embedding and HQ features, including the normalisation."""

    def __init__(self, sam: SamHq) -> None:
        super().__init__(sam)
        self.embedding_encoder = sam.mask_decoder.embedding_encoder
        self.compress_vit_feat = sam.mask_decoder.compress_vit_feat

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        """Return ``image_embedding`` ``[B,256,64,64]`` and ``hq_features`` ``[B,32,256,256]``.

        Both as float16, then the same in float32; inputs are those of `EncoderGraph`.  The HQ
        features are computed from the embedding before it is rounded.
        """
        images = self.standardise(image, image_size).to(self.dtype)
        embedding, early = self.image_encoder.with_early_features(images)
        features = self.embedding_encoder(embedding) + self.compress_vit_feat(early)
        return embedding.half(), features.half(), embedding.float(), features.float()


class HqDecoderGraph(DecoderGraph):
    """Embeddings and prompts to all masks; the gateway selects, adds and upsamples them."""

    mask_decoder: HqMaskDecoder

    def forward(  # type: ignore[override]  # one more tensor of the embedding
        self,
        image_embedding: Tensor,
        hq_features: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        iou_threshold: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return ``low_res_logits`` ``[B,P,5,256,256]`` and ``predicted_iou`` ``[B,P,5]``.

        Inputs are those of `DecoderGraph`.  SAM-HQ predicts no IoU for token 4; it has that of the
        multimask output to which it is added: the best.
        """
        decoder = self.mask_decoder
        cells, tokens = self.rows(image_embedding, point_coords, point_labels, mask_input)
        tokens, cells = decoder.transformer(cells, self.places, tokens)
        iou = decoder.iou_prediction_head(tokens[:, :, 0])
        iou = torch.cat([iou, iou[:, :, 1:].amax(2, keepdim=True)], 2)
        survivors = Survivors.of(iou, iou_threshold)
        tokens, pixels = survivors.take(tokens), decoder.upscaled(survivors.take(cells))
        features = survivors.of_image(hq_features.float().flatten(2))
        masks = [decoder.masks(tokens, pixels), decoder.hq_mask(tokens, pixels, features)]
        return survivors.scatter(torch.cat(masks, 1)), iou
