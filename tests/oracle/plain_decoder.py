"""Decoders of the tensor contract that the exporter did not make.

Each graph is traced from the modules of the original library, operation by operation as in its
source: `segment-anything`, `segment-anything-hq` or transformers.  They run on ONNX Runtime in
place of an exported decoder, as the baseline of its results and of its speed.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

OPSET = 17
LABELS = (-1.0, 0.0, 1.0, 2.0, 3.0)
"""Point labels: padding, background, foreground, a box's top-left and bottom-right corner."""

MASKS = 4
"""Mask tokens of every family, without SAM-HQ's additional one."""

Axes = tuple[str | int, ...]


def plain_decoder(sam: Any) -> onnx.ModelProto:
    """Trace the decoder of a Sam of `segment-anything`, of any size.

    Inputs ``image_embedding`` float16 ``[B,256,g,g]``, ``point_coords`` float32 ``[B,P,N,2]`` in
    model pixels, ``point_labels`` ``[B,P,N]``, ``mask_input`` ``[B,M,4g,4g]``; outputs
    ``low_res_logits`` ``[B,P,4,4g,4g]`` and ``predicted_iou`` ``[B,P,4]``; B, P, N and M are
    dynamic.
    """
    grid = sam.prompt_encoder.image_embedding_size[0]
    return _trace(SamDecoder(sam), {"image_embedding": (256, grid, grid)}, MASKS)


def plain_hq_decoder(sam: Any) -> onnx.ModelProto:
    """Trace the decoder of a Sam of `segment-anything-hq`.

    As `plain_decoder`, with ``hq_features`` float16 ``[B,32,4g,4g]`` after the embedding, and five
    masks.  The last has the HQ token's logits, without the plain mask that may be added to it.
    """
    grid = sam.prompt_encoder.image_embedding_size[0]
    embedding = {"image_embedding": (256, grid, grid), "hq_features": (32, 4 * grid, 4 * grid)}
    return _trace(HqDecoder(sam), embedding, MASKS + 1)


def plain_sam2_decoder(model: Any) -> onnx.ModelProto:
    """Trace the decoder of a `Sam2Model` or an `EdgeTamModel` of transformers.

    As `plain_decoder`, with ``high_res_0`` and ``high_res_1`` before the embedding and the output
    ``object_score_logits`` ``[B,P,1]``.
    """
    width = model.config.prompt_encoder_config.hidden_size
    grid = model.config.prompt_encoder_config.image_size // 16
    embedding = {
        "high_res_0": (width // 8, 4 * grid, 4 * grid),
        "high_res_1": (width // 4, 2 * grid, 2 * grid),
        "image_embedding": (width, grid, grid),
    }
    return _trace(Sam2Decoder(model), embedding, MASKS, {"object_score_logits": ("B", "P", 1)})


class SamDecoder(nn.Module):
    """The decoder of a Sam, for P prompts on each of B images."""

    positions: Tensor

    def __init__(self, sam: Any) -> None:
        super().__init__()
        self.prompts, self.decoder = sam.prompt_encoder, sam.mask_decoder
        self.register_buffer("positions", sam.prompt_encoder.get_dense_pe().detach())

    def output_tokens(self) -> Tensor:
        """Return the tokens before those of a prompt, ``[T,256]``: IoU, masks."""
        return torch.cat([self.decoder.iou_token.weight, self.decoder.mask_tokens.weight])

    def decode(
        self, embedding: Tensor, coords: Tensor, labels: Tensor, masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return output tokens ``[n,T,256]`` and planes ``[n,32,4g,4g]``, one row n per prompt."""
        prompts = self.prompts
        kinds = [prompts.not_a_point_embed.weight, *(e.weight for e in prompts.point_embeddings)]
        normal = (coords + 0.5) / prompts.input_image_size[0]
        sparse = embed_points(prompts.pe_layer._pe_encoding(normal), labels, kinds)
        dense = embed_masks(prompts.mask_downscaling, prompts.no_mask_embed.weight, masks, coords)
        tokens, planes = rows(self.output_tokens(), embedding, sparse, dense)
        tokens, cells = self.decoder.transformer(planes, self.positions, tokens)
        planes = cells.transpose(1, 2).reshape_as(planes)
        return tokens, self.decoder.output_upscaling(planes)

    def masks(self, tokens: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[n,4,4g,4g]`` and predicted IoU ``[n,4]``."""
        mlps = self.decoder.output_hypernetworks_mlps
        logits = mixed(mlps[:MASKS], tokens[:, 1 : 1 + MASKS], fine)
        return logits, self.decoder.iou_prediction_head(tokens[:, 0])

    def forward(
        self, image_embedding: Tensor, coords: Tensor, labels: Tensor, mask_input: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the tensors of `plain_decoder`."""
        logits, iou = self.masks(*self.decode(image_embedding, coords, labels, mask_input))
        return by_prompt(logits, coords), by_prompt(iou, coords)


class HqDecoder(SamDecoder):
    """The decoder of a Sam of `segment-anything-hq`."""

    def output_tokens(self) -> Tensor:
        """See `SamDecoder.output_tokens`; the HQ token is the last."""
        return torch.cat([super().output_tokens(), self.decoder.hf_token.weight])

    def forward(  # type: ignore[override]  # one more tensor of the embedding
        self,
        image_embedding: Tensor,
        hq_features: Tensor,
        coords: Tensor,
        labels: Tensor,
        mask_input: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the tensors of `plain_hq_decoder`; the HQ mask has the best multimask IoU."""
        tokens, fine = self.decode(image_embedding, coords, labels, mask_input)
        logits, iou = self.masks(tokens, fine)
        planes = of_image(hq_features.float(), self.decoder.embedding_maskfeature(fine), coords)
        hq = mixed([self.decoder.hf_mlp], tokens[:, 1 + MASKS : 2 + MASKS], planes)
        logits = torch.cat([logits, hq], 1)
        iou = torch.cat([iou, iou[:, 1:].amax(1, keepdim=True)], 1)
        return by_prompt(logits, coords), by_prompt(iou, coords)


class Sam2Decoder(nn.Module):
    """The decoder of SAM 2 and EdgeTAM."""

    positions: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.prompts, self.decoder = model.prompt_encoder, model.mask_decoder
        self.side = model.config.prompt_encoder_config.image_size
        positions = model.get_image_wide_positional_embeddings()
        self.register_buffer("positions", positions.detach())

    def forward(
        self,
        high_res_0: Tensor,
        high_res_1: Tensor,
        image_embedding: Tensor,
        coords: Tensor,
        labels: Tensor,
        mask_input: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the tensors of `plain_sam2_decoder`."""
        decoder, prompts = self.decoder, self.prompts
        kinds = [prompts.not_a_point_embed.weight, prompts.point_embed.weight]
        positions = prompts.shared_embedding((coords + 0.5) / self.side)
        sparse = embed_points(positions, labels, kinds)
        dense = embed_masks(prompts.mask_embed, prompts.no_mask_embed.weight, mask_input, coords)
        names = ("obj_score_token", "iou_token", "mask_tokens")
        outputs = torch.cat([getattr(decoder, name).weight for name in names])
        tokens, planes = rows(outputs, image_embedding, sparse, dense)
        tokens, cells = decoder.transformer(
            point_embeddings=tokens.unsqueeze(1),
            image_embeddings=planes,
            image_positional_embeddings=self.positions,
            attention_similarity=None,
            target_embedding=None,
        )
        tokens, planes = tokens[:, 0], cells[:, 0].transpose(1, 2).reshape_as(planes)
        planes = of_image(high_res_1.float(), decoder.upscale_conv1(planes), coords)
        planes = decoder.activation(decoder.upscale_layer_norm(planes))
        planes = of_image(high_res_0.float(), decoder.upscale_conv2(planes), coords)
        mlps, fine = decoder.output_hypernetworks_mlps, decoder.activation(planes)
        logits = mixed(mlps, tokens[:, 2 : 2 + MASKS], fine)
        iou, score = decoder.iou_prediction_head(tokens[:, 1]), decoder.pred_obj_score_head
        return tuple(by_prompt(each, coords) for each in (logits, iou, score(tokens[:, 0])))


def embed_points(positions: Tensor, labels: Tensor, kinds: Sequence[Tensor]) -> Tensor:
    """Return tokens ``[B,P,N,C]``: the position, zero for padding, plus the label's embedding.

    *kinds* are those of `LABELS`, in their order.
    """
    label = labels.unsqueeze(3)
    positions = torch.where(label == LABELS[0], torch.zeros_like(positions), positions)
    chosen = (label == torch.tensor(LABELS)).to(positions.dtype)
    return positions + chosen @ torch.cat(list(kinds))


def embed_masks(downscaling: nn.Module, none: Tensor, masks: Tensor, coords: Tensor) -> Tensor:
    """Return dense embeddings ``[B,P,C,g,g]``; the first M of the P prompts have masks."""
    batch, given, side = masks.shape[0], masks.shape[1], masks.shape[2]
    # With M = 0 a reshape would have an empty input: one more mask is computed and dropped.
    spare = torch.zeros(1, 1, side, side).expand(batch, 1, side, side)
    dense = downscaling(torch.cat([masks, spare], 1).reshape(-1, 1, side, side))
    shape = dense.shape[1:]
    dense = dense.reshape(batch, given + 1, *shape)[:, :given]
    absent = none.reshape(1, 1, -1, 1, 1).expand(batch, coords.shape[1] - given, *shape)
    return torch.cat([dense, absent], 1)


def rows(
    outputs: Tensor, embedding: Tensor, sparse: Tensor, dense: Tensor
) -> tuple[Tensor, Tensor]:
    """Return tokens ``[n,T+N,C]`` and planes ``[n,C,g,g]``, one row n per prompt."""
    outputs = outputs.expand(*sparse.shape[:2], *outputs.shape)
    tokens = torch.cat([outputs, sparse], 2).flatten(0, 1)
    return tokens, (embedding.float().unsqueeze(1) + dense).flatten(0, 1)


def mixed(mlps: Sequence[nn.Module], tokens: Tensor, planes: Tensor) -> Tensor:
    """Return masks ``[n,T,h,w]``: each of the tokens ``[n,T,C]`` mixes the planes ``[n,D,h,w]``."""
    mixes = torch.stack([mlp(tokens[:, index]) for index, mlp in enumerate(mlps)], 1)
    masks = mixes @ planes.flatten(2)
    return masks.reshape(-1, len(mlps), *planes.shape[2:])


def of_image(values: Tensor, planes: Tensor, prompts: Tensor) -> Tensor:
    """Add features ``[B,D,h,w]`` of images to planes ``[n,D,h,w]`` of their prompts."""
    return (by_prompt(planes, prompts) + values.unsqueeze(1)).flatten(0, 1)


def by_prompt(values: Tensor, prompts: Tensor) -> Tensor:
    """Split rows n into ``[B,P,...]``, the axes of *prompts*."""
    return values.reshape(prompts.shape[0], prompts.shape[1], *values.shape[1:])


def _trace(
    graph: nn.Module,
    embedding: Mapping[str, Axes],
    masks: int,
    more: Mapping[str, Axes] | None = None,
) -> onnx.ModelProto:
    side = 4 * int(embedding["image_embedding"][1])
    inputs: dict[str, Axes] = {
        **{name: ("B", *shape) for name, shape in embedding.items()},
        "point_coords": ("B", "P", "N", 2),
        "point_labels": ("B", "P", "N"),
        "mask_input": ("B", "M", side, side),
    }
    outputs: dict[str, Axes] = {
        "low_res_logits": ("B", "P", masks, side, side),
        "predicted_iou": ("B", "P", masks),
        **(more or {}),
    }
    # Dynamic axes of different lengths, so that the trace cannot confuse them.
    lengths = {"B": 2, "P": 3, "N": 4, "M": 1}
    example = tuple(
        torch.ones(
            [lengths.get(axis, axis) for axis in axes],  # type: ignore[call-overload]
            dtype=torch.float16 if name in embedding else torch.float32,
        )
        for name, axes in inputs.items()
    )
    model = _exported(graph.eval(), example, inputs, outputs)
    for value in model.graph.output:
        del value.type.tensor_type.shape.dim[:]
        for axis in outputs[value.name]:
            kind = "dim_value" if isinstance(axis, int) else "dim_param"
            setattr(value.type.tensor_type.shape.dim.add(), kind, axis)
    return model


def _exported(
    graph: nn.Module,
    example: tuple[Tensor, ...],
    inputs: Mapping[str, Axes],
    outputs: Mapping[str, Axes],
) -> onnx.ModelProto:
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", TracerWarning)
        warnings.filterwarnings("ignore", message="Constant folding", category=UserWarning)
        torch.onnx.export(
            graph,
            example,
            buffer,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={
                name: {place: axis for place, axis in enumerate(axes) if isinstance(axis, str)}
                for name, axes in {**inputs, **outputs}.items()
            },
        )
    return onnx.load_model_from_string(buffer.getvalue())
