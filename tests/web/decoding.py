"""What decodes in the browser, on a page of its own, for tests and benchmarks."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from playwright.async_api import Page
from samserve.app import Running
from samserve.core import scanlines
from samserve.v1 import samserve_pb2 as pb

from tests.examples.programs import ROOT, program

WEB = ROOT / "web"
_SOURCES = Path(__file__).parent / "decoding_page"
_MULTIMASKS = {
    "ALL": pb.MULTIMASK_ALL,
    "SINGLE": pb.MULTIMASK_SINGLE,
    "AUTO": pb.MULTIMASK_UNSPECIFIED,
}


def build(folder: Path) -> None:
    """Build the page, and write its files to *folder*."""
    assert (WEB / "node_modules").exists(), f"{WEB} has no node_modules: run `make web`"
    path = f"{Path(program('node')).parent}{os.pathsep}{os.environ['PATH']}"
    vite = (program("node"), str(WEB / "node_modules" / "vite" / "bin" / "vite.js"))
    options = ("--config", str(WEB / "vite.config.ts"), "--outDir", str(folder), "--emptyOutDir")
    subprocess.run(
        [*vite, "build", str(_SOURCES), *options, "--logLevel", "warn"],
        cwd=WEB,
        env={**os.environ, "PATH": path},
        check=True,
        timeout=120,
    )


def runtime_files(folder: Path) -> list[str]:
    """Return the names of the files of a built page that a runtime is loaded from."""
    return [each.name for each in folder.rglob("*") if each.suffix in (".wasm", ".mjs")]


def sections(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the settings of a server that serves the built page, and what it downloads."""
    http = {"enabled": True, "port": 0, "web_page": True, "web_page_folder": str(folder)}
    return {"http": http, "embedding_files": {"get_enabled": True}}


def credential(service: Running) -> str:
    """Return the credential of a new session."""
    assert service.page is not None
    sessions = service.page.sessions
    assert sessions is not None
    found = sessions.exchange(sessions.issue())
    assert found is not None
    return found


@dataclass(frozen=True)
class Asked:
    """A prompt: points ``(x, y, is foreground)`` and box XYXY in image pixels, low-res logits."""

    points: Sequence[tuple[float, float, bool]] = ()
    box: tuple[float, float, float, float] | None = None
    logits: bytes | None = None

    def for_page(self, multimask: str) -> dict[str, Any]:
        """Return the argument of the page's functions."""
        asked: dict[str, Any] = {"points": list(self.points), "multimask": multimask}
        if self.box is not None:
            asked["box"] = self.box
        if self.logits is not None:
            asked["logits"] = base64.b64encode(self.logits).decode()
        return asked

    def request(self, embedding_id: str, multimask: str) -> pb.PredictRequest:
        """Return the request for the same masks."""
        prompt = pb.Prompt(
            points=[pb.Point(x=x, y=y, label=1 if inside else 2) for x, y, inside in self.points]
        )
        if self.box is not None:
            x_min, y_min, x_max, y_max = self.box
            prompt.box.CopyFrom(pb.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max))
        if self.logits is not None:
            prompt.mask.low_res_logits = self.logits
        return pb.PredictRequest(
            embedding_id=embedding_id,
            prompts=[prompt],
            multimask=_MULTIMASKS[multimask],
            include_low_res_logits=True,
            output_mode=pb.OUTPUT_MODE_UNCOMPRESSED_RLE,
        )


@dataclass(frozen=True)
class Found:
    """A mask of the browser or of the server."""

    runs: np.ndarray
    area: int
    bbox: tuple[float, float, float, float]
    predicted_iou: float
    stability: float
    token: int
    logits: bytes

    @classmethod
    def of_page(cls, mask: dict[str, Any]) -> Found:
        """Read a mask of the page."""
        box = mask["bbox"]
        return cls(
            np.array(mask["runs"], dtype=np.int64),
            mask["area"],
            (box["x"], box["y"], box["width"], box["height"]),
            mask["predictedIou"],
            mask["stabilityScore"],
            mask["token"],
            base64.b64decode(mask["logits"]),
        )

    @classmethod
    def of_server(cls, mask: pb.Mask) -> Found:
        """Read a mask of a response."""
        return cls(
            np.array(mask.uncompressed_rle.counts, dtype=np.int64),
            mask.area,
            (mask.bbox.x, mask.bbox.y, mask.bbox.width, mask.bbox.height),
            mask.predicted_iou,
            mask.stability_score,
            mask.token_index,
            mask.low_res_logits,
        )

    def iou(self, other: Found) -> float:
        """Return the IoU of the pixels; 1 for two empty masks."""
        shared = scanlines.intersection(self.runs, other.runs)
        union = self.area + other.area - shared
        return shared / union if union else 1.0

    def values(self) -> np.ndarray:
        """Return the low-res logits, float32."""
        return np.frombuffer(self.logits, dtype="<f4")


async def in_browser(page: Page, asked: Asked, multimask: str) -> list[Found]:
    """Return the masks that the browser decodes."""
    answer = await page.evaluate("(asked) => harness.predict(asked)", asked.for_page(multimask))
    return [Found.of_page(each) for each in answer["masks"]]


async def on_server(stub: Any, embedding_id: str, asked: Asked, multimask: str) -> list[Found]:
    """Return the masks of the server."""
    response = await stub.Predict(asked.request(embedding_id, multimask))
    return [Found.of_server(each) for each in response.results[0].masks]
