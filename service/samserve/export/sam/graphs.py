"""The two graphs that are exported, with the tensors of the model contract."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samserve.export.decoder.two_way import to_cells
from samserve.export.pixels import PIXEL_MEAN, PIXEL_STD
from samserve.export.sam.model import Sam


class EncoderGraph(nn.Module):
    """Image to embedding, including the normalisation."""

    mean: Tensor
    std: Tensor

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.image_encoder = sam.image_encoder
        self.dtype = next(sam.image_encoder.parameters()).dtype
        # Persistent buffers, since only these are stored once if a graph uses them several times.
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN))
        self.register_buffer("std", torch.tensor(PIXEL_STD))

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of `SamConfig.embedding` as float16, then the same in float32.

        ``image`` uint8 ``[B,1024,1024,3]`` RGB, the resized image in the top-left corner;
        ``image_size`` int32 ``[B,2]``, its height and width. Pixels outside of it are ignored.
        """
        images = self.standardise(image, image_size)
        embedding = self.image_encoder(images.to(self.dtype))
        return embedding.half(), embedding.float()

    def standardise(self, image: Tensor, image_size: Tensor) -> Tensor:
        """Normalise the image and zero the padding: float32 ``[B,3,1024,1024]``.

        Divides, since multiplying by the inverse is not bit-identical.
        """
        height, width = image.shape[1], image.shape[2]
        size = image_size.reshape(-1, 2, 1, 1, 1)
        row = torch.arange(height, dtype=torch.int32).reshape(1, height, 1, 1)
        column = torch.arange(width, dtype=torch.int32).reshape(1, 1, width, 1)
        inside = (row < size[:, 0]) & (column < size[:, 1])
        standard = (image.float() - self.mean) / self.std
        return torch.where(inside, standard, torch.zeros(())).permute(0, 3, 1, 2)


class DecoderGraph(nn.Module):
    """Embeddings and prompts to all masks; the gateway selects and upsamples them."""

    places: Tensor

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = sam.prompt_encoder, sam.mask_decoder
        # The name is part of the exported graph, and thus of its digest.
        self.register_buffer("places", sam.prompt_encoder.dense_positions().detach())

    def forward(
        self,
        image_embedding: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        iou_threshold: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return ``low_res_logits`` ``[B,P,4,256,256]`` and ``predicted_iou`` ``[B,P,4]``.

        ``image_embedding`` float16 ``[B,256,64,64]``; ``point_coords`` ``[B,P,N,2]`` in model
        pixels and ``point_labels`` ``[B,P,N]``, N from 0; ``mask_input`` ``[B,M,256,256]`` logits
        for the first M of the P prompts; ``iou_threshold`` ``[B,4]``, see `MaskDecoder`. The
        caller appends the padding point.
        """
        cells, tokens = self.rows(image_embedding, point_coords, point_labels, mask_input)
        result: tuple[Tensor, Tensor] = self.mask_decoder(cells, self.places, tokens, iou_threshold)
        return result

    def rows(
        self,
        image_embedding: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the inputs ``cells`` and ``tokens`` of `MaskDecoder`."""
        batch, prompts = point_coords.shape[0], point_coords.shape[1]
        sparse = self.prompt_encoder.embed_points(point_coords, point_labels)
        outputs = self.mask_decoder.output_tokens()
        outputs = outputs.expand(batch, prompts, outputs.shape[0], outputs.shape[1])
        cells = to_cells(image_embedding)
        dense = self.prompt_encoder.embed_masks(mask_input, prompts)
        return cells + dense, torch.cat([outputs, sparse], 2)
