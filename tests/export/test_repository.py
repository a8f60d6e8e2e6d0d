"""The model repository that Triton and the gateway read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from onnx import ModelProto
from samserve.export.errors import ExportError
from samserve.export.onnx_file import parsed, serialized
from samserve.export.triton_repository import Description, write_bundle
from samserve.models.digest import bundle_digest, graph_digests

from tests.export import graphs
from tests.export.config_check import contents, parameters, read_config

ROLES = ("encoder", "decoder")


def write(
    repository: Path,
    name: str = "toy",
    *,
    encoder: ModelProto | None = None,
    decoder: ModelProto | None = None,
    description: str = "Toy",
) -> None:
    models = {"encoder": encoder or graphs.encoder(), "decoder": decoder or graphs.decoder()}
    write_bundle(repository, name, models, Description(description))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A repository with one model, ``toy``."""
    write(tmp_path, description='A "toy" é \\ model')
    return tmp_path


def test_parameters_describe_the_model_for_the_gateway(written: Path) -> None:
    files = [serialized(model) for model in (graphs.encoder(), graphs.decoder())]
    encoder, decoder = (hashlib.sha256(file) for file in files)
    expected = {
        "samserve.family": "sam1",
        "samserve.model": "toy",
        "samserve.digest": hashlib.sha256(encoder.digest() + decoder.digest()).hexdigest(),
        "samserve.encoder_digest": encoder.hexdigest(),
        "samserve.preprocessing": "sam1-1",
        "samserve.image_size": "1024",
        "samserve.mask_size": "256",
        "samserve.description": 'A "toy" é \\ model',
    }

    for role in ROLES:
        found = parameters(read_config(written / f"toy_{role}"))
        threads = {"intra_op_thread_count": "1"} if role == "decoder" else {}
        assert found == {**expected, **threads, "samserve.role": role}


def test_digest_changes_with_every_file(tmp_path: Path) -> None:
    digests = set()
    for names in ["ab", "ba", "ac", "cb"]:
        for weights in [b"", b"w", b"x"]:
            files = []
            for role, name in zip(ROLES, names, strict=True):
                files.append(tmp_path / f"{role}_{name}_{weights.decode()}" / "model.onnx")
                files[-1].parent.mkdir(exist_ok=True)
                files[-1].write_bytes(name.encode())
            if weights:
                files[0].with_name("model.onnx.data").write_bytes(weights)
            digests.add(bundle_digest(graph_digests(dict(zip(ROLES, files, strict=True)))))

    assert len(digests) == 12


def test_writing_again_replaces_only_the_same_model(written: Path) -> None:
    write(written, "other")
    before = contents(written / "other_encoder")

    write(written, description="New")

    found = parameters(read_config(written / "toy_decoder"))
    assert found["samserve.description"] == "New"
    assert contents(written / "other_encoder") == before
    assert len(list(written.iterdir())) == 4


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        pytest.param(
            {"image_embedding": (graphs.FLOAT, ["B", 256, 64, 64])}, "disagree", id="dtype"
        ),
        pytest.param(
            {"image_embedding": (graphs.HALF, ["B", 256, 32, 32])}, "disagree", id="shape"
        ),
        pytest.param({"features": (graphs.HALF, ["B", 4])}, "no input 'features'", id="name"),
    ],
)
def test_an_encoder_that_does_not_match_its_decoder_is_rejected(
    tmp_path: Path, outputs: graphs.Interface, message: str
) -> None:
    encoder = graphs.encoder(outputs)

    with pytest.raises(ExportError, match=message):
        write(tmp_path, encoder=encoder)
    assert contents(tmp_path) == {}


def test_a_fixed_batch_axis_is_rejected(tmp_path: Path) -> None:
    embedding = {"image_embedding": (graphs.HALF, [1, 256, 64, 64])}
    encoder = graphs.encoder(embedding)
    decoder = graphs.graph({**graphs.DECODER_INPUTS, **embedding}, graphs.DECODER_OUTPUTS)

    with pytest.raises(ExportError, match="no open batch axis"):
        write(tmp_path, encoder=encoder, decoder=decoder)


@pytest.mark.parametrize("name", ["", "../up", "a b", ".hidden"])
def test_an_invalid_model_name_is_rejected(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match="model name"):
        write(tmp_path, name)


def test_bytes_that_are_not_a_graph_are_rejected() -> None:
    with pytest.raises(ExportError, match="not an ONNX file"):
        parsed(b"PK\x03\x04")
