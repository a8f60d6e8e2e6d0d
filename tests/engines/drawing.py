"""The fake engine as a pair of real ONNX models, so that every engine can serve the same answers.

`samserve.engines.fake` says what is drawn; these graphs draw it in torch.
"""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

import onnx
import torch
from samserve.engines.fake import MODEL
from samserve.export.repository import Description, write_pair
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

RADII = (40.0, 20.0, 40.0, 60.0)
IOUS = (0.90, 0.95, 0.92, 0.89)
SIDE, GRID, CHANNELS = MODEL.image_size, 64, 256
CELL = SIDE // GRID


# A step takes a millisecond or two.
DAWDLING_SIZE = 1 << 20
ONE_SECOND = 1000
DAWDLING_CLICK = 1023.75
"""A click with this x takes as many steps more as the pair was written with."""


def _dawdle(numbers: Tensor, steps: Tensor) -> Tensor:
    """Compute zeros, slowly."""
    for _ in range(int(steps)):
        numbers = torch.sin(numbers)
    return numbers


with warnings.catch_warnings():
    # A loop that becomes a loop of the graph needs a script, which torch announces the end of.
    warnings.simplefilter("ignore", DeprecationWarning)
    dawdle = torch.jit.script(_dawdle)


class Encoder(nn.Module):
    """Writes the mean colour of each cell into the first three channels.

    A picture whose first pixel is white takes *steps* steps more.
    """

    def __init__(self, *, steps: int = 0) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, image: Tensor, image_size: Tensor) -> Tensor:
        rows = torch.arange(SIDE).reshape(1, SIDE, 1, 1)
        columns = torch.arange(SIDE).reshape(1, 1, SIDE, 1)
        inside = (rows < image_size[:, :1, None, None]) & (columns < image_size[:, 1:, None, None])
        pixels = torch.where(inside, image.float(), torch.zeros(()))
        cells = pixels.reshape(-1, GRID, CELL, GRID, CELL, 3).mean(dim=(2, 4)).permute(0, 3, 1, 2)
        rest = torch.zeros(1, CHANNELS - 3, GRID, GRID).expand(image.shape[0], -1, -1, -1)
        embedding = torch.cat([cells, rest], 1).half()
        return self._slowly(embedding, image) if self.steps else embedding

    def _slowly(self, embedding: Tensor, image: Tensor) -> Tensor:
        white = (image[:, 0, 0].int().amin(1) == 255).int().amax().long()
        zeros = dawdle(torch.zeros(DAWDLING_SIZE), white * self.steps)
        return embedding + zeros[0].half()


class Decoder(nn.Module):
    """Draws discs, ellipses or the mask input, in this order of preference."""

    def __init__(self, *, steps: int = 0) -> None:
        super().__init__()
        self.steps = steps

    def forward(
        self, image_embedding: Tensor, point_coords: Tensor, point_labels: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        scale = MODEL.mask_size / SIDE
        foreground = (point_labels == 1).float()
        count = foreground.sum(-1)
        clicked = (point_coords * foreground[..., None]).sum(-2) / count.clamp(min=1)[..., None]
        low = (point_coords * (point_labels == 2).float()[..., None]).sum(-2)
        high = (point_coords * (point_labels == 3).float()[..., None]).sum(-2)
        has_click = (count > 0)[..., None]
        has_box = (point_labels == 2).any(-1)[..., None]
        centre = torch.where(has_click, clicked, (low + high) / 2) * scale
        stretch = torch.where(
            has_click, torch.ones(()), (high - low) * scale / (2 * RADII[2])
        ).clamp(min=1e-3)
        drawn = self._ellipses(centre, stretch)
        fallback = self._grown(mask, drawn)
        logits = torch.where((has_click | has_box)[..., None, None], drawn, fallback)
        # The embedding must be an input of the graph: it is added, zero times.
        logits = logits + 0 * image_embedding[:, :1, :1, :1, None].float()
        if self.steps:
            slow = (point_coords[..., 0] == DAWDLING_CLICK).int().amax().long()
            logits = logits + dawdle(torch.zeros(DAWDLING_SIZE), slow * self.steps)[0]
        iou = torch.tensor(IOUS).expand(*point_labels.shape[:2], -1)
        return logits, iou + 0 * count[..., None]

    def _ellipses(self, centre: Tensor, stretch: Tensor) -> Tensor:
        grid = torch.arange(MODEL.mask_size).float() + 0.5
        x = (grid - centre[..., :1]) / stretch[..., :1]
        y = (grid - centre[..., 1:]) / stretch[..., 1:]
        distance = torch.sqrt(x[..., None, :] ** 2 + y[..., :, None] ** 2)
        return torch.tensor(RADII)[:, None, None] - distance[:, :, None]

    def _grown(self, mask: Tensor, drawn: Tensor) -> Tensor:
        """The first M prompts have masks; the others get nothing at all."""
        growth = (torch.tensor(RADII) / RADII[1] - 1)[:, None, None]
        nothing = torch.full((1, 1, 1, 1, 1), -10.0).expand_as(drawn)
        return torch.cat([mask[:, :, None] + growth, nothing], 1)[:, : drawn.shape[1]]


def write_drawing_pair(repository: Path, name: str = MODEL.name, *, steps: int = 0) -> None:
    """Add the models ``<name>_encoder`` and ``<name>_decoder`` to a repository."""
    image = torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8)
    encoder = _export(
        Encoder(steps=steps),
        {"image": (image, {0: "B"}), "image_size": (torch.full((2, 2), SIDE).int(), {0: "B"})},
        {"image_embedding": ("B", CHANNELS, GRID, GRID)},
    )
    side = MODEL.mask_size
    decoder = _export(
        Decoder(steps=steps),
        {
            "image_embedding": (torch.zeros(2, CHANNELS, GRID, GRID).half(), {0: "B"}),
            "point_coords": (torch.ones(2, 3, 4, 2), {0: "B", 1: "P", 2: "N"}),
            "point_labels": (torch.ones(2, 3, 4), {0: "B", 1: "P", 2: "N"}),
            "mask_input": (torch.zeros(2, 1, side, side), {0: "B", 1: "M"}),
        },
        {"low_res_logits": ("B", "P", 4, side, side), "predicted_iou": ("B", "P", 4)},
    )
    write_pair(repository, name, encoder, decoder, Description(MODEL.description))


def _export(
    graph: nn.Module,
    inputs: dict[str, tuple[Tensor, dict[int, str]]],
    outputs: dict[str, tuple[str | int, ...]],
) -> onnx.ModelProto:
    buffer = BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", TracerWarning)
        warnings.simplefilter("ignore", UserWarning)
        torch.onnx.export(
            graph.eval(),
            tuple(example for example, _ in inputs.values()),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: axes for name, (_, axes) in inputs.items()}
            | {
                name: {at: axis for at, axis in enumerate(axes) if isinstance(axis, str)}
                for name, axes in outputs.items()
            },
        )
    model = onnx.load_from_string(buffer.getvalue())
    for value in model.graph.output:
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for axis in outputs[value.name]:
            dim = shape.dim.add()
            if isinstance(axis, int):
                dim.dim_value = axis
            else:
                dim.dim_param = axis
    return model
