"""`segment-anything` models of any size, with weights that make comparisons meaningful.

With random weights a comparison is vacuous: logits of +-0.1, one IoU for all, every mask the whole
image. :func:`build_sam` constructs weights that training would find, without training: cells attend
to the token of a point near them, and the last layers are solved (least squares) and scaled so that
masks are regions around the prompt, logits have a spread and predicted IoUs lie around 0.88.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.oracle import mobile, torchvision_shim

torchvision_shim.install()

from segment_anything import SamPredictor  # noqa: E402
from segment_anything.modeling import (  # noqa: E402
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

RADII = (0.35, 0.45, 0.3, 0.2)
"""Radius around a point that each mask token covers, in model frames."""

FOREGROUND = (0.16, 0.22, 0.15, 0.1)
"""Fraction of an image that each token's mask covers, on average."""

READOUT_RADIUS = 0.16
RIDGE = 3e-3
MASK_GAIN = 5.0
SAMPLING = 7
"""Every seventh low-res pixel is enough to solve for 32 numbers."""
WAVE_GAIN = 2.0
PROMPT_FRACTION = 0.1
LOGITS_SPREAD = 12.0
IOU_MEAN, IOU_SPREAD = 0.88, 0.05


PATCH = 16
"""Side of an embedding cell in pixels of the model frame."""


@dataclass(frozen=True)
class SamSize:
    """Sizes of a ViT; the decoder is the same for every SAM.

    The model frame has ``grid`` cells per side: 64 in all published models.
    """

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    grid: int = 64

    def encoder(self) -> nn.Module:
        """Build the original image encoder."""
        return ImageEncoderViT(
            depth=self.depth,
            embed_dim=self.width,
            img_size=PATCH * self.grid,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_heads=self.heads,
            use_rel_pos=True,
            global_attn_indexes=self.global_blocks,
            window_size=14,
        )


class MobileSize:
    """The size of MobileSAM."""

    grid = 64

    def encoder(self) -> nn.Module:
        """Build the original image encoder."""
        return mobile.image_encoder()


Size = SamSize | MobileSize

SMALL = SamSize(width=64, depth=3, heads=2, global_blocks=(1,), grid=16)
"""A frame of 256 pixels, for tests that need no published size; the rest is not reduced."""
TINY = SamSize(width=64, depth=4, heads=2, global_blocks=(1, 3))
VIT_B = SamSize(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11))
VIT_L = SamSize(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23))
VIT_H = SamSize(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31))
MOBILE = MobileSize()


def build_sam(
    size: Size,
    images: Sequence[np.ndarray],
    *,
    seed: int = 0,
    foreground: Sequence[float] = FOREGROUND,
) -> Sam:
    """Build a SAM whose masks depend on its prompts.

    ``images`` are a few RGB images uint8 ``[H,W,3]`` for calibration, ``foreground`` is the
    fraction of them that each token's mask covers. Save the result's ``state_dict()`` for the
    loader under test.
    """
    torch.manual_seed(seed)
    sam = original(size)
    with torch.no_grad():
        make_informative(SamPredictor(sam), images, foreground)
    return sam.eval().requires_grad_(False)


def make_informative(
    predictor: SamPredictor, images: Sequence[np.ndarray], foreground: Sequence[float]
) -> None:
    """Set the weights of a predictor's Sam, without gradients; see `build_sam`."""
    sam = predictor.model
    _randomise(sam)
    if not hasattr(sam.image_encoder, "blocks"):  # a TinyViT
        mobile.randomise(sam.image_encoder, standardised(sam, images))
    _set_locality(sam)
    _calibrate(predictor, images, foreground)


def round_embeddings_to_half(sam: Sam) -> Sam:
    """Round every embedding to float16, as samserve caches it; change nothing else."""
    sam.image_encoder.register_forward_hook(
        lambda _module, _inputs, embedding: embedding.half().float()
    )
    return sam


def standardised(sam: Sam, images: Sequence[np.ndarray]) -> Tensor:
    """Resize, normalise and pad as SamPredictor does: float32 ``[n,3,side,side]``."""
    transform = SamPredictor(sam).transform
    planes = [
        torch.from_numpy(transform.apply_image(np.ascontiguousarray(image))).permute(2, 0, 1)
        for image in images
    ]
    return torch.cat([sam.preprocess(plane.unsqueeze(0).float()) for plane in planes])


def original(size: Size) -> Sam:
    """Build the modules as ``segment_anything.build_sam`` does, in another size."""
    encoder = size.encoder()  # first, so that seeds give the same weights
    prompts = PromptEncoder(
        embed_dim=256,
        image_embedding_size=(size.grid, size.grid),
        input_image_size=(PATCH * size.grid, PATCH * size.grid),
        mask_in_chans=16,
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    decoder = MaskDecoder(transformer=transformer, transformer_dim=256)
    return Sam(encoder, prompts, decoder).eval()


def _randomise(sam: Sam) -> None:
    """Set random values where the initial ones are zeros or ones, so that each has an effect."""
    for name, parameter in sam.named_parameters():
        if name.endswith(("rel_pos_h", "rel_pos_w")):
            nn.init.normal_(parameter, std=0.5)
        elif "pos_embed" in name:
            nn.init.normal_(parameter, std=0.2)
        elif parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    prompts, decoder = sam.prompt_encoder, sam.mask_decoder
    # Position encodings are waves of amplitude 1: contents must not be larger.
    for embedding in [*prompts.point_embeddings, decoder.iou_token, decoder.mask_tokens]:
        embedding.weight.mul_(0.4)
    for weight in (sam.image_encoder.neck[-1].weight, prompts.no_mask_embed.weight):
        weight.mul_(0.4)
    for layer in decoder.transformer.layers:
        layer.norm3.weight.mul_(0.4)


def _set_locality(sam: Sam) -> None:
    """Set queries and keys of the image-to-token attention to the position encoding's waves.

    A head reads sine and cosine of 8 of the 128 waves. Their products sum to a bump around the
    point, as the encoding is a random Fourier basis.
    """
    waves = torch.arange(64).reshape(8, 8)
    slots = torch.arange(128).reshape(8, 2, 8)
    waves_to_slots = torch.zeros(128, 256)
    waves_to_slots[slots[:, 0], waves] = WAVE_GAIN
    waves_to_slots[slots[:, 1], 128 + waves] = WAVE_GAIN
    values = _token_values(sam)
    for layer in sam.mask_decoder.transformer.layers:
        self_attention = layer.self_attn
        for projection in (
            self_attention.q_proj,
            self_attention.k_proj,
            self_attention.v_proj,
            self_attention.out_proj,
        ):
            projection.weight.mul_(0.2).add_(torch.eye(256))
        attention = layer.cross_attn_image_to_token
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.mul_(0.2).add_(waves_to_slots)
        attention.v_proj.weight.mul_(0.2).add_(values)
        attention.out_proj.weight.mul_(4)


def _token_values(sam: Sam) -> Tensor:
    """Return the attention values of tokens, by label and not by position: ``[128,256]``."""
    background, *others = [
        embedding.weight[0] / embedding.weight.norm()
        for embedding in sam.prompt_encoder.point_embeddings
    ]
    value = torch.randn(128)
    mapping = torch.outer(-value, background)
    for label in others:
        mapping += torch.outer(value + 0.3 * torch.randn(128), label)
    return mapping


def _calibrate(
    predictor: SamPredictor, images: Sequence[np.ndarray], foreground: Sequence[float]
) -> None:
    """Solve the last layers on a few point prompts; scale logits and predicted IoUs."""
    sam = predictor.model
    decoder = sam.mask_decoder
    outputs = [point_outputs(predictor, image) for image in images]
    points, tokens, cells = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    grid = sam.prompt_encoder.image_embedding_size[0]
    positions = points / (PATCH * grid)
    readout = solve(cells, bumps(positions, grid, READOUT_RADIUS))
    _set_readout(decoder, readout)
    _set_mask_input(sam.prompt_encoder, readout)
    planes = cells.transpose(1, 2).reshape(-1, 256, grid, grid)
    fine = decoder.output_upscaling(planes).flatten(2).transpose(1, 2)[:, ::SAMPLING]
    for mask, (radius, fraction) in enumerate(zip(RADII, foreground, strict=True)):
        mix = solve(fine, bumps(positions, 4 * grid, radius)[:, ::SAMPLING])
        head = decoder.output_hypernetworks_mlps[mask]
        set_mask_head(head, mix, tokens[:, 1 + mask], fine, fraction)
    _spread_iou(decoder.iou_prediction_head, tokens[:, 0])


def point_outputs(predictor: SamPredictor, image: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Return points ``[9,2]`` in model pixels, tokens ``[9,7,256]``, cells ``[9,grid**2,256]``."""
    sam = predictor.model
    predictor.set_image(np.ascontiguousarray(image))
    height, width = predictor.input_size
    side = (torch.arange(3) + torch.rand(3)) / 3
    points = torch.cartesian_prod(side * width, side * height)
    outputs: list[tuple[Tensor, Tensor]] = []
    hook = sam.mask_decoder.transformer.register_forward_hook(
        lambda _module, _inputs, output: outputs.append(output)
    )
    predictor.predict_torch(points.unsqueeze(1), torch.ones(len(points), 1))
    hook.remove()
    return points, *outputs[0]


def bumps(points: Tensor, side: int, radius: float) -> Tensor:
    """Return cones around points, 1 at the centre and 0 at the radius: ``[n,side*side]``, min -1.

    Points and radius are in model frames.
    """
    centres = (torch.arange(side) + 0.5) / side
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    positions = torch.stack([columns, rows], 2).reshape(1, -1, 2)
    distance = (positions - points.unsqueeze(1)).norm(dim=2)
    return (1 - distance / radius).clamp(min=-1)


def solve(features: Tensor, target: Tensor) -> Tensor:
    """Return the least-squares mix ``[C]`` of ``features`` ``[n,K,C]`` for ``target`` ``[n,K]``."""
    basis = features.reshape(-1, features.shape[2]).double()
    gram = basis.T @ basis
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    return torch.linalg.solve(gram, basis.T @ target.reshape(-1).double()).float()


def _set_readout(decoder: MaskDecoder, readout: Tensor) -> None:
    """Pass a readout of the cells and a constant through the upscaling.

    All four sub-cells of a transposed convolution get nearly the same weights: one mix must fit
    all of them.
    """
    first, second = decoder.output_upscaling[0], decoder.output_upscaling[3]
    for layer in (first, second):
        own = layer.weight - layer.weight[:, :, :1, :1]
        layer.weight.copy_(layer.weight[:, :, :1, :1] + 0.1 * own)
    first.weight[:, 0] = (3 * readout).reshape(-1, 1, 1)
    first.weight[:, 1] = (-3 * readout).reshape(-1, 1, 1)
    first.bias[:2] = 0
    second.weight[:, :3] = 0
    second.weight[0, 1] = second.weight[1, 2] = 1
    second.bias[:3] = torch.tensor([1.0, 0.0, 0.0])


def _set_mask_input(encoder: PromptEncoder, readout: Tensor) -> None:
    """Make the inside of a mask input raise the readout and its outside lower it."""
    side = encoder.mask_input_size[0]
    target = bumps(torch.rand(8, 2), side, 0.2).reshape(8, 1, side, side)
    features = encoder.mask_downscaling[:-1](20 * target)
    inside = functional.avg_pool2d(target.sign(), 4)
    mix = solve(features.flatten(2).transpose(1, 2), inside.reshape(8, -1))
    last = encoder.mask_downscaling[-1]
    increase = MASK_GAIN * torch.outer(readout / readout.norm(), mix)
    last.weight.add_(increase.reshape(last.weight.shape))


def set_mask_head(
    head: nn.Module, mix: Tensor, tokens: Tensor, fine: Tensor, fraction: float
) -> None:
    """Set a hypernetwork's last layer: the mix, varied by the prompt, with the target spread.

    ``fraction`` is that of the pixels that become foreground.
    """
    for layer in head.layers[:-1]:
        tokens = torch.relu(layer(tokens))
    last = head.layers[-1]
    # Not along the mean of the channels: that would only shift whole masks.
    mean = fine.mean((0, 1)) / fine.mean((0, 1)).norm()
    last.weight.sub_(torch.outer(mean, mean @ last.weight))
    variation = tokens @ last.weight.T
    last.weight.mul_(PROMPT_FRACTION * mix.std() / variation.std())
    last.bias.copy_(mix - (tokens @ last.weight.T).mean(0))
    logits = torch.einsum("nc,npc->np", last(tokens), fine)
    # Channel 0 is the constant of _set_readout.
    last.bias[0] -= np.quantile(logits.numpy(), 1 - fraction) / fine[0, 0, 0]
    gain = LOGITS_SPREAD / logits.std()
    last.weight.mul_(gain)
    last.bias.mul_(gain)


def _spread_iou(head: nn.Module, tokens: Tensor) -> None:
    """Shift and scale the predicted IoUs, so that the default threshold splits them."""
    scores, last = head(tokens), head.layers[-1]
    gain = IOU_SPREAD / scores.std(0)
    last.weight.mul_(gain.unsqueeze(1))
    last.bias.copy_(IOU_MEAN + gain * (last.bias - scores.mean(0)))
