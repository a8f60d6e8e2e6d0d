"""The exported graphs match the model, for every shape that the contract allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from samserve.export.onnx_file import parsed
from samserve.export.tiny.graphs import ServedDecoder, decoder_onnx

from training.export import encoder_onnx
from training.model import SamTiny
from training.runtime import OnnxPair

MAX_BYTES = 16 * 2**20


@pytest.fixture(scope="module")
def model() -> SamTiny:
    torch.manual_seed(0)
    model = SamTiny(mask_iou_head=True).eval()
    torch.nn.init.normal_(model.decoder.mask_head.weight, std=0.1)
    return model


@pytest.fixture(scope="module")
def graphs(model: SamTiny) -> tuple[bytes, bytes]:
    return encoder_onnx(model.encoder), decoder_onnx(model.decoder)


@pytest.fixture(scope="module")
def pair(graphs: tuple[bytes, bytes], tmp_path_factory: pytest.TempPathFactory) -> OnnxPair:
    folder: Path = tmp_path_factory.mktemp("pair")
    encoder, decoder = (folder / f"tiny_{role}.onnx" for role in ("encoder", "decoder"))
    encoder.write_bytes(graphs[0])
    decoder.write_bytes(graphs[1])
    # On a loaded machine, several threads would wait for each other.
    return OnnxPair(encoder, decoder, threads=1)


def test_export_is_small(graphs: tuple[bytes, bytes]) -> None:
    assert sum(map(len, graphs)) <= MAX_BYTES


@pytest.mark.slow
def test_export_is_deterministic(model: SamTiny, graphs: tuple[bytes, bytes]) -> None:
    assert graphs == (encoder_onnx(model.encoder), decoder_onnx(model.decoder))


def test_encoder_ignores_the_content_of_the_padding(model: SamTiny, pair: OnnxPair) -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    embedding = pair.embed(image, (1024, 700))
    assert embedding.dtype == np.float16
    assert embedding.shape == (1, 256, 64, 64)
    with torch.no_grad():
        expected = model.encoder(torch.from_numpy(image)[None], torch.tensor([[1024, 700]]))
    assert np.abs(expected.numpy() - embedding).max() < 5e-3
    image[:, 700:] = 0
    assert np.array_equal(pair.embed(image, (1024, 700)), embedding)


def test_exported_decoder_matches_the_model_for_every_shape(model: SamTiny, pair: OnnxPair) -> None:
    random = np.random.default_rng(1)
    embedding = random.standard_normal((1, 256, 64, 64)).astype(np.float16)
    for prompts, points, masks in (
        *((1, 1, 0), (1, 1, 1), (3, 2, 0), (3, 2, 3)),
        *((2, 0, 2), (2, 0, 0), (2, 5, 1)),
    ):
        coords = random.uniform(0, 1024, (prompts, points, 2)).astype(np.float32)
        labels = random.integers(-1, 4, (prompts, points)).astype(np.float32)
        mask_input = (4 * random.standard_normal((masks, 256, 256))).astype(np.float32)
        logits, iou = pair.decode(embedding, coords, labels, mask_input)
        tensors = [torch.from_numpy(part)[None] for part in (coords, labels, mask_input)]
        with torch.no_grad():
            expected = ServedDecoder(model.decoder)(torch.from_numpy(embedding), *tensors)
        shape = prompts, points, masks
        assert logits.std() > 0.5, shape
        assert np.abs(expected[0][0].numpy() - logits).max() < 5e-3, shape
        assert np.abs(expected[1][0].numpy() - iou).max() < 1e-4, shape


def test_exported_decoder_declares_which_batches_are_equal(graphs: tuple[bytes, bytes]) -> None:
    shapes = {
        value.name: value.type.tensor_type.shape.dim[0].dim_param
        for value in parsed(graphs[1]).graph.value_info
    }
    # Features before and after a group norm, between which a reshape computes the batch.
    added = {name: batch for name, batch in shapes.items() if "/join64/" in name}
    assert len(added) > 3
    assert len(set(added.values())) == 1
