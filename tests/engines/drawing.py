"""The fake engine as a pair of real ONNX models, so that every engine returns the same results.

`samserve.engines.fake` documents what is drawn.  The graphs are in the text form of ONNX, which
does not need torch.  On Triton, a pair can hold runs, for tests that need a model to be busy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from samserve.engines.fake import MODEL
from samserve.export.triton_repository import Description, write_bundle

from harness.triton.environment import nvidia_backend
from tests.support.waiting import until

ENCODER = """
<ir_version: 8, opset_import: ["" : 17]>
encoder (uint8[B,1024,1024,3] image, int32[B,2] image_size)
  => (float16[B,256,64,64] image_embedding)
<
  int32 start = {0}, int32 side = {1024}, int32 step = {1},
  int64[4] as_rows = {1,1,-1,1}, int64[4] as_columns = {1,1,1,-1}, int64[4] as_sizes = {-1,1,1,1},
  int64[8] rest = {0,0,0,0,0,253,0,0}, float zero = {0}
>
{
  # The area of the image.
  indices = Range (start, side, step)
  rows = Reshape (indices, as_rows)
  columns = Reshape (indices, as_columns)
  height, width = Split <axis = 1> (image_size)
  heights = Reshape (height, as_sizes)
  widths = Reshape (width, as_sizes)
  above = Less (rows, heights)
  left = Less (columns, widths)
  inside = And (above, left)
  channels = Transpose <perm = [0, 3, 1, 2]> (image)
  colours = Cast <to = 1> (channels)
  pixels = Where (inside, colours, zero)
  # The mean colour of each cell in the first three channels.
  cells = AveragePool <kernel_shape = [16, 16], strides = [16, 16]> (pixels)
  padded = Pad (cells, rest, zero)
  image_embedding = Cast <to = 10> (padded)
}
"""

DECODER = """
<ir_version: 8, opset_import: ["" : 17]>
decoder (
  float16[B,256,64,64] image_embedding, float[B,P,N,2] point_coords, float[B,P,N] point_labels,
  float[B,M,256,256] mask_input
) => (float[B,P,4,256,256] low_res_logits, float[B,P,4] predicted_iou)
<
  float zero = {0}, float one = {1}, float two = {2}, float three = {3}, float half = {0.5},
  float scale = {0.25}, float box_scale = {0.003125}, float tiny = {0.001}, float no_mask = {-10},
  float grid_start = {0.5}, float grid_end = {256.5},
  float[4,1,1] radii = {40, 20, 40, 60}, float[4,1,1] growth = {1, 0, 1, 2},
  float[4] ious = {0.90, 0.95, 0.92, 0.89},
  int64[1] axis_2 = {2}, int64[1] axis_3 = {3}, int64[2] axes_3_4 = {3, 4},
  int64[3] axes_1_2_3 = {1, 2, 3}, int64[3] from = {0, 0, 0}, int64[3] to = {1, 1, 1},
  int64[3] as_number = {-1, 1, 1}, int64[3] mask_dims = {4, 256, 256}
>
{
  # The mean foreground point.
  is_foreground = Equal (point_labels, one)
  foreground = Cast <to = 1> (is_foreground)
  count = ReduceSum <keepdims = 1> (foreground, axis_2)
  has_point = Greater (count, zero)
  point_weights = Unsqueeze (foreground, axis_3)
  foreground_points = Mul (point_coords, point_weights)
  point_sum = ReduceSum <keepdims = 0> (foreground_points, axis_2)
  divisor = Max (count, one)
  mean_point = Div (point_sum, divisor)
  # The box.
  is_low = Equal (point_labels, two)
  lows = Cast <to = 1> (is_low)
  low_count = ReduceSum <keepdims = 1> (lows, axis_2)
  has_box = Greater (low_count, zero)
  low_weights = Unsqueeze (lows, axis_3)
  low_points = Mul (point_coords, low_weights)
  low = ReduceSum <keepdims = 0> (low_points, axis_2)
  is_high = Equal (point_labels, three)
  highs = Cast <to = 1> (is_high)
  high_weights = Unsqueeze (highs, axis_3)
  high_points = Mul (point_coords, high_weights)
  high = ReduceSum <keepdims = 0> (high_points, axis_2)
  corners = Add (low, high)
  middle = Mul (corners, half)
  diagonal = Sub (high, low)
  box_stretch = Mul (diagonal, box_scale)
  # Discs or ellipses.  The embedding is read, but does not change the result.
  corner = Slice (image_embedding, from, to, axes_1_2_3)
  wide_corner = Cast <to = 1> (corner)
  number = Reshape (wide_corner, as_number)
  nought = Mul (number, zero)
  chosen = Where (has_point, mean_point, middle)
  scaled = Mul (chosen, scale)
  centre = Add (scaled, nought)
  any_stretch = Where (has_point, one, box_stretch)
  stretch = Max (any_stretch, tiny)
  x0, y0 = Split <axis = 2> (centre)
  x_stretch, y_stretch = Split <axis = 2> (stretch)
  grid = Range (grid_start, grid_end, one)
  dx = Sub (grid, x0)
  dy = Sub (grid, y0)
  x = Div (dx, x_stretch)
  y = Div (dy, y_stretch)
  xx = Mul (x, x)
  yy = Mul (y, y)
  in_columns = Unsqueeze (xx, axis_2)
  in_rows = Unsqueeze (yy, axis_3)
  square = Add (in_columns, in_rows)
  distance = Sqrt (square)
  distances = Unsqueeze (distance, axis_2)
  drawn = Sub (radii, distances)
  # The first M prompts have masks; the others get empty masks.
  masks = Unsqueeze (mask_input, axis_2)
  grown = Add (masks, growth)
  batch_size = Shape <start = 0, end = 1> (point_labels)
  prompts = Shape <start = 1, end = 2> (point_labels)
  mask_count = Shape <start = 1, end = 2> (mask_input)
  without = Sub (prompts, mask_count)
  nothing_dims = Concat <axis = 0> (batch_size, without, mask_dims)
  nothing = Expand (no_mask, nothing_dims)
  fallback = Concat <axis = 1> (grown, nothing)
  has_centre = Or (has_point, has_box)
  has_centres = Unsqueeze (has_centre, axes_3_4)
  low_res_logits = Where (has_centres, drawn, fallback)
  no_count = Mul (count, zero)
  predicted_iou = Add (no_count, ious)
}
"""

HELD_PIXEL = 255
HELD_X = 1023.75


@dataclass(frozen=True)
class Hold:
    """Runs that Triton has begun and that do not end until they are released.

    An encoder run is held if the first pixel of its image is white (`HELD_PIXEL`), a decoder run if
    its first point has the x coordinate `HELD_X`.
    """

    folder: Path

    def apply_to(self, repository: Path, name: str = MODEL.name) -> None:
        """Configure the models of a pair to hold such runs (see `harness.triton.backend`)."""
        if nvidia_backend() is not None:
            pytest.skip("NVIDIA's backend cannot hold runs")
        self.folder.mkdir(exist_ok=True)
        for role, tensor, prefix in (
            ("encoder", "image", [HELD_PIXEL] * 3),
            ("decoder", "point_coords", [HELD_X]),
        ):
            hold = json.dumps({"folder": str(self.folder), "input": tensor, "prefix": prefix})
            with (repository / f"{name}_{role}" / "config.pbtxt").open("a") as config:
                config.write(
                    'parameters { key: "hold_runs" '
                    f"value {{ string_value: {json.dumps(hold)} }} }}\n"
                )

    async def begun(self, count: int = 1) -> None:
        """Wait until *count* runs are held."""
        await until(lambda: len(self._marks()) == count)

    def release(self, count: int | None = None) -> None:
        """Release *count* of the held runs, or all of them."""
        for mark in self._marks()[:count]:
            mark.unlink(missing_ok=True)

    def _marks(self) -> list[Path]:
        return list(self.folder.iterdir())


def mark_held(pixels: np.ndarray) -> np.ndarray:
    """Modify an image in place so that the encoder holds its run."""
    pixels[0, 0] = HELD_PIXEL
    return pixels


def write_drawing_pair(repository: Path, name: str = MODEL.name, *, weights: str = "") -> None:
    """Add the models ``<name>_encoder`` and ``<name>_decoder`` to a repository.

    Models with other *weights* draw the same; their files, and so their digests, differ.
    """
    texts = {"encoder": ENCODER, "decoder": DECODER}
    models = {role: onnx.parser.parse_model(text) for role, text in texts.items()}
    for model in models.values():
        model.doc_string = weights
    write_bundle(repository, name, models, Description(MODEL.description))
