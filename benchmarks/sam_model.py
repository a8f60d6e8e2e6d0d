"""A model with the decoder of SAM at full size, and the files that each way of running it needs.

The image encoder is small, since every side runs the same one. The weights are seeded, and set so
that the masks are small and have sharp edges, as those of `tests/export/test_automask.py`: some
pass, and some fail, every filter of AutoMask.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import ROOT
from benchmarks.process import in_process

NAME = "sam_decoder"
FEW_PIXELS = (0.04, 0.05, 0.04, 0.03)
SHARPER = 5.0
SOURCES = ("service/samserve/export", "tests/oracle", "benchmarks/sam_model.py")
"""The files are made again once one of these has changed."""


@dataclass(frozen=True)
class SamModel:
    """The files of the model; *toy* has a model frame of 256 pixels."""

    folder: Path
    toy: bool

    @property
    def checkpoint(self) -> Path:
        """The state dict, for `segment-anything`."""
        return self.folder / "sam.pth"

    @property
    def repository(self) -> Path:
        """The export, for samserve."""
        return self.folder / "models"

    @property
    def encoder(self) -> Path:
        """The exported image encoder, which the plain graph runs with."""
        return self.repository / f"{NAME}_encoder" / "1" / "model.onnx"

    @property
    def plain(self) -> Path:
        """The decoder of the same tensors, operation by operation as in `segment-anything`."""
        return self.folder / "plain.onnx"

    def onnx_flow(self, *, single: bool) -> Path:
        """The decoder that the export script of `segment-anything` makes."""
        return self.folder / ("single.onnx" if single else "all.onnx")

    @property
    def size(self) -> str:
        """The name of its size in `tests.oracle.sam`."""
        return "SMALL" if self.toy else "TINY"


def prepare(folder: Path, *, toy: bool) -> SamModel:
    """Make the files, unless *folder* has them."""
    model = SamModel(folder / f"{NAME}-{'toy' if toy else 'full'}-{_digest()}", toy)
    if not model.folder.exists():
        unfinished = SamModel(model.folder.with_suffix(".new"), toy)
        shutil.rmtree(unfinished.folder, ignore_errors=True)
        unfinished.folder.mkdir(parents=True)
        in_process(_make, unfinished)
        unfinished.folder.rename(model.folder)
    return model


def _digest() -> str:
    digest = hashlib.sha256()
    for name in SOURCES:
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _make(model: SamModel) -> None:
    import onnx  # noqa: PLC0415 - only in the process that makes the files
    import torch  # noqa: PLC0415
    from samserve.export.pipeline import ExportOptions, export  # noqa: PLC0415

    from tests.oracle import photos, sam  # noqa: PLC0415
    from tests.oracle.plain_decoder import plain_decoder  # noqa: PLC0415

    built = sam.build_sam(getattr(sam, model.size), photos.calibration(), foreground=FEW_PIXELS)
    for hypernetwork in built.mask_decoder.output_hypernetworks_mlps:
        hypernetwork.layers[-1].weight *= SHARPER
        hypernetwork.layers[-1].bias *= SHARPER
    torch.save(built.state_dict(), model.checkpoint)
    export(model.checkpoint, ExportOptions(model.repository, NAME, check_parity=False))
    onnx.save(plain_decoder(built), model.plain)
    for single in (True, False):
        _export_onnx_flow(built, model.onnx_flow(single=single), single=single)


def _export_onnx_flow(built: object, path: Path, *, single: bool) -> None:
    """Export as ``scripts/export_onnx_model.py`` of `segment-anything`, with its default options.

    *single* is its ``--return-single-mask``.
    """
    import torch  # noqa: PLC0415
    from segment_anything.utils.onnx import SamOnnxModel  # noqa: PLC0415
    from torch.nn.functional import interpolate  # noqa: PLC0415

    class Flow(SamOnnxModel):  # type: ignore[misc]  # no types
        """The same operations for images of any aspect ratio: the original's becomes a constant."""

        def mask_postprocessing(self, masks: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
            frame = (self.img_size, self.img_size)
            masks = interpolate(masks, size=frame, mode="bilinear", align_corners=False)
            inner = self.resize_longest_image_size(size, self.img_size)
            masks = masks[..., : inner[0], : inner[1]]
            size = size.to(torch.int64)
            return interpolate(masks, size=(size[0], size[1]), mode="bilinear", align_corners=False)

    flow = Flow(built, return_single_mask=single)
    grid = built.prompt_encoder.image_embedding_size[0]  # type: ignore[attr-defined]
    inputs = {
        "image_embeddings": torch.randn(1, 256, grid, grid),
        "point_coords": torch.randint(0, 1024, (1, 5, 2)).float(),
        "point_labels": torch.randint(0, 4, (1, 5)).float(),
        "mask_input": torch.randn(1, 1, 4 * grid, 4 * grid),
        "has_mask_input": torch.ones(1),
        "orig_im_size": torch.tensor([1500.0, 2250.0]),
    }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            flow,
            tuple(inputs.values()),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=list(inputs),
            output_names=["masks", "iou_predictions", "low_res_masks"],
            dynamic_axes={"point_coords": {1: "points"}, "point_labels": {1: "points"}},
        )
