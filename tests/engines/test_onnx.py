"""The ONNX engine with the default model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from prometheus_client import CollectorRegistry
from samserve.app import default_repository
from samserve.cache.local.cache import LocalCache
from samserve.context import RequestContext
from samserve.engines.base import EncoderInput, PromptBatch
from samserve.engines.onnx import OnnxEngine
from samserve.errors import EngineFailure, EngineUnavailable, WeightsChanged
from samserve.export.stamp import stamp
from samserve.memory.slot import Slot
from samserve.telemetry.metrics import Metrics
from samserve.types import EmbeddingFacts, EmbeddingKey, Size

from tests import sample_images
from tests.export.config_check import age, copied, unstamped

NAME = "sam_tiny"


def open_engine(repository: Path, default_model: str = "") -> OnnxEngine:
    return OnnxEngine(repository, 2, Metrics(CollectorRegistry()), default_model)


@pytest.fixture
async def engine() -> AsyncIterator[OnnxEngine]:
    engine = open_engine(default_repository())
    yield engine
    await engine.aclose()


async def encoded(engine: OnnxEngine, valid: Size, padding: int = 0) -> Slot:
    info = engine.models[NAME]
    cache = LocalCache(8 << 20, ttl_s=60)
    facts = EmbeddingFacts.of(valid, info)
    slot = await cache.reserve(EmbeddingKey("t", "x"), facts, info.embedding)
    pixels = np.full((1024, 1024, 3), padding, dtype=np.uint8)
    pixels[: valid.height, : valid.width] = sample_images.noise(valid.height, valid.width)
    await engine.encode(NAME, EncoderInput(pixels, valid), slot, RequestContext())
    return slot


def point_prompts(count: int) -> PromptBatch:
    coords = np.zeros((count, 2, 2), dtype=np.float32)
    coords[:, 0] = np.linspace(50, 900, count)[:, None]
    labels = np.tile(np.array([1, -1], dtype=np.float32), (count, 1))
    return PromptBatch(coords, labels, np.zeros((0, 256, 256), dtype=np.float32))


async def test_padding_does_not_change_the_embedding(engine: OnnxEngine) -> None:
    clean = await encoded(engine, Size(700, 1024), padding=0)
    garbage = await encoded(engine, Size(700, 1024), padding=255)

    for name, tensor in clean.tensors.items():
        assert np.array_equal(tensor, garbage.tensors[name])
        assert np.isfinite(tensor.astype(np.float32)).all()


async def test_prompts_of_a_batch_are_independent(engine: OnnxEngine) -> None:
    slot = await encoded(engine, Size(1024, 640))
    together = await engine.decode(NAME, slot.as_embedding(), point_prompts(5), RequestContext())
    batch = point_prompts(5)
    alone = await engine.decode(
        NAME,
        slot.as_embedding(),
        PromptBatch(batch.point_coords[3:4], batch.point_labels[3:4], batch.mask_input),
        RequestContext(),
    )

    assert np.allclose(together.low_res_logits[3], alone.low_res_logits[0], atol=1e-3)


async def test_failed_run_of_either_network_is_an_engine_failure(engine: OnnxEngine) -> None:
    slot = await encoded(engine, Size(1024, 640))
    small = EncoderInput(np.zeros((512, 512, 3), dtype=np.uint8), Size(512, 320))
    unpaired = replace(point_prompts(2), point_labels=point_prompts(1).point_labels)

    with pytest.raises(EngineFailure, match="the encoder failed"):
        await engine.encode(NAME, small, slot, RequestContext())
    with pytest.raises(EngineFailure, match="the decoder failed"):
        await engine.decode(NAME, slot.as_embedding(), unpaired, RequestContext())


def test_empty_repository_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="no model"):
        open_engine(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("decoder/1/model.onnx", None, r"model\.onnx is missing"),
        ("encoder/1/model.onnx", b"not a graph", "cannot be loaded"),
        ("encoder/config.pbtxt", b"name: [", r"config\.pbtxt is not a model configuration"),
    ],
    ids=["missing graph", "broken graph", "broken configuration"],
)
def test_missing_and_invalid_files_are_rejected(
    tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    path = copied(tmp_path) / f"{NAME}_{file}"
    path.unlink()
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(EngineUnavailable, match=message):
        open_engine(tmp_path / "models")


def test_missing_default_model_is_rejected() -> None:
    with pytest.raises(EngineUnavailable, match="sam_tiny"):
        open_engine(default_repository(), default_model="sam_vit_h")


@pytest.mark.parametrize("digest", ["", "ab" * 32], ids=["none", "another"])
@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_graph_with_another_digest_than_its_configuration_is_rejected(
    tmp_path: Path, role: str, digest: str
) -> None:
    repository = copied(tmp_path)
    path = repository / f"{NAME}_{role}" / "1" / "model.onnx"
    path.write_bytes(unstamped(path))
    if digest:
        stamp(path, digest)

    stamped = digest[:12] or "none"
    expected = f"{NAME}.*digest {stamped},.*upgrade {repository}$"
    with pytest.raises(EngineUnavailable, match=expected):
        open_engine(repository)


def test_graph_with_other_tensors_than_its_configuration_is_rejected(tmp_path: Path) -> None:
    repository = copied(tmp_path)
    encoder, decoder = (
        repository / f"{NAME}_{role}" / "config.pbtxt" for role in ("encoder", "decoder")
    )
    encoder.write_text(encoder.read_text().replace('"sam1"', '"sam_hq"'))
    decoder.write_text(decoder.read_text().replace("[ -1, 4", "[ -1, 5"))

    with pytest.raises(EngineUnavailable) as rejected:
        open_engine(repository)
    assert str(rejected.value) == (
        f"the decoder of model {NAME!r} is not one of the family 'sam_hq': the output "
        "'low_res_logits' has the shape [-1, 4, 256, 256], not [-1, 5, 256, 256]"
    )


async def test_run_is_checked_by_the_graph_output_and_not_by_the_configuration(
    engine: OnnxEngine,
) -> None:
    """The graphs of an open session cannot be replaced, so the session is."""
    slot = await encoded(engine, Size(1024, 640))
    other = open_engine(default_repository())
    bundle = other._bundles[NAME]
    altered = {role: WrongDigest(session) for role, session in bundle.graphs.items()}
    other._bundles[NAME] = replace(bundle, graphs=altered)
    with pytest.raises(WeightsChanged):
        await other.decode(NAME, slot.as_embedding(), point_prompts(1), RequestContext())
    with pytest.raises(WeightsChanged):
        await encoded(other, Size(1024, 640))
    await other.aclose()


async def test_models_of_the_previous_export_return_the_same_masks(
    engine: OnnxEngine, tmp_path: Path
) -> None:
    repository = copied(tmp_path)
    age(repository, NAME, stamped=True)
    engines = (engine, open_engine(repository))
    slots = [await encoded(each, Size(1024, 640)) for each in engines]
    outputs = [
        await each.decode(NAME, slot.as_embedding(), point_prompts(2), RequestContext())
        for each, slot in zip(engines, slots, strict=True)
    ]
    await engines[1].aclose()

    assert np.array_equal(outputs[0].low_res_logits, outputs[1].low_res_logits)
    assert slots[1].facts.encoder_digest == engine.models[NAME].digest


class WrongDigest:
    """A session that reports another digest; its other outputs are unchanged."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.io_binding = session.io_binding

    def run(self, names: list[str], *rest: object) -> list[np.ndarray]:
        *outputs, reported = self._session.run(names, *rest)
        return [*outputs, reported + 1]

    def run_with_iobinding(self, binding: ort.IOBinding, options: ort.RunOptions) -> None:
        """Leave the digest output uninitialized, which is not a valid digest."""
