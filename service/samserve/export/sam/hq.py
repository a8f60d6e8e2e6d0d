"""SAM-HQ: a SAM whose decoder has an additional mask token, with features of its own.

Source: Ke et al., "Segment Anything in High Quality" (2023), and the original code,
segment-anything-hq 0.3, `modeling/mask_decoder_hq.py`.  State dict keys are those of its
checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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

    def hq_masks(self, tokens: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
        """Return the HQ token's logits without HQ features, ``[n,side,side]``, and its mix.

        The mix ``[n,32]`` weighs the channels of the HQ features of the image: the mix of a sum of
        features is the sum of the mixes, and the second term needs no copy of them per prompt.
        Inputs are those of `masks`.
        """
        mix = self.hf_mlp(tokens[:, 1 + MASKS])
        features = self.embedding_maskfeature(fine)
        logits = mix.unsqueeze(1) @ features.flatten(2)
        return logits.reshape(-1, features.shape[2], features.shape[3]), mix


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
    ) -> tuple[Tensor, Tensor]:
        """Return ``low_res_logits`` ``[B,P,5,256,256]`` and ``predicted_iou`` ``[B,P,5]``.

        Inputs are those of `DecoderGraph`.  SAM-HQ predicts no IoU for token 4; it has that of the
        multimask output to which it is added: the best.
        """
        decoder = self.mask_decoder
        cells, tokens = self.rows(image_embedding, point_coords, point_labels, mask_input)
        tokens, fine = decoder.decode(cells, self.places, tokens)
        logits, iou = decoder.masks(tokens, fine)
        hq, mix = decoder.hq_masks(tokens, fine)
        batch, prompts, side = point_coords.shape[0], point_coords.shape[1], logits.shape[3]
        features = mix.reshape(batch, prompts, mix.shape[1]) @ hq_features.float().flatten(2)
        hq = hq.reshape(batch, prompts, 1, side, side)
        hq = hq + features.reshape(batch, prompts, 1, side, side)
        logits = torch.cat([logits.reshape(batch, prompts, MASKS, side, side), hq], 2)
        iou = torch.cat([iou, iou[:, 1:].amax(1, keepdim=True)], 1)
        return logits, iou.reshape(batch, prompts, MASKS + 1)
