"""A model repository as Triton and the gateway read it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from onnx import ModelProto
from samserve.export import triton_repository as repository_module
from samserve.export.errors import ExportError
from samserve.export.onnx_file import parsed, serialized
from samserve.export.triton_repository import Description, write_bundle
from samserve.models.digest import bundle_digest, graph_digests

from tests.export import graphs
from tests.export.config_check import actual, declared, parameters, read_config, read_graph

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


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("role", ROLES)
def test_config_declares_the_tensors_of_its_graph(written: Path, role: str) -> None:
    config = read_config(written / f"toy_{role}")
    model = read_graph(written / f"toy_{role}")

    assert declared(config.input) == actual(model.graph.input)
    assert declared(config.output) == actual(model.graph.output)
    assert config.name == f"toy_{role}"
    assert config.backend == "onnxruntime"


def test_encoder_batches_plainly(written: Path) -> None:
    config = read_config(written / "toy_encoder")

    assert config.max_batch_size == 4
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.ByteSize() == 0
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, 0)]


def test_decoder_has_two_priorities_and_two_instances_of_any_kind(written: Path) -> None:
    config = read_config(written / "toy_decoder")

    assert config.max_batch_size == 8
    assert config.dynamic_batching.priority_levels == 2
    assert config.dynamic_batching.default_priority_level == 2
    assert [(group.count, group.kind) for group in config.instance_group] == [(2, 0)]


def test_decoder_takes_timeouts_of_requests_and_bounds_its_queues(written: Path) -> None:
    policy = read_config(written / "toy_decoder").dynamic_batching.default_queue_policy

    assert policy.timeout_action == policy.REJECT
    assert policy.allow_timeout_override
    # Triton ignores the timeout of a request that is not below this one.
    assert policy.default_timeout_microseconds == 60_000_000
    assert policy.max_queue_size == 256


@pytest.mark.parametrize("role", ROLES)
def test_warm_up_is_a_valid_request_of_zeros(written: Path, role: str) -> None:
    config = read_config(written / f"toy_{role}")
    (warm_up,) = config.model_warmup

    assert warm_up.batch_size == 1
    assert set(warm_up.inputs) == {tensor.name for tensor in config.input}
    for tensor in config.input:
        value = warm_up.inputs[tensor.name]
        assert value.zero_data
        assert value.data_type == tensor.data_type
        pairs = zip(tensor.dims, value.dims, strict=True)
        assert all(wanted in (given, -1) for wanted, given in pairs)


def test_warm_up_of_the_decoder_is_a_click_without_a_mask(written: Path) -> None:
    (warm_up,) = read_config(written / "toy_decoder").model_warmup

    assert {name: list(value.dims) for name, value in warm_up.inputs.items()} == {
        "image_embedding": [256, 64, 64],
        "point_coords": [1, 2, 2],
        "point_labels": [1, 2],
        "mask_input": [0, 256, 256],
    }


def test_parameters_say_what_the_gateway_must_know(written: Path) -> None:
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


def test_same_arguments_write_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write(tmp_path / folder)

    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert set(contents(tmp_path / "one")) == {
        f"toy_{role}/{file}" for role in ROLES for file in ("config.pbtxt", "1/model.onnx")
    }


def test_writing_again_replaces_the_pair_and_leaves_others_alone(written: Path) -> None:
    write(written, "other")
    before = contents(written / "other_encoder")

    write(written, description="New")

    found = parameters(read_config(written / "toy_decoder"))
    assert found["samserve.description"] == "New"
    assert contents(written / "other_encoder") == before
    assert len(list(written.iterdir())) == 4


def test_failing_half_way_leaves_the_old_pair(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(written)
    original = repository_module.config_text

    def fail_on_decoder(config: repository_module.ModelConfig) -> str:
        if config.name.endswith("decoder"):
            raise OSError("disk full")
        return original(config)

    monkeypatch.setattr(repository_module, "config_text", fail_on_decoder)

    with pytest.raises(OSError, match="disk full"):
        write(written, description="New")
    assert contents(written) == before


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
def test_encoder_that_does_not_fit_its_decoder_is_refused(
    tmp_path: Path, outputs: graphs.Interface, message: str
) -> None:
    encoder = graphs.encoder(outputs)

    with pytest.raises(ExportError, match=message):
        write(tmp_path, encoder=encoder)
    assert contents(tmp_path) == {}


def test_fixed_batch_axis_is_refused(tmp_path: Path) -> None:
    embedding = {"image_embedding": (graphs.HALF, [1, 256, 64, 64])}
    encoder = graphs.encoder(embedding)
    decoder = graphs.graph({**graphs.DECODER_INPUTS, **embedding}, graphs.DECODER_OUTPUTS)

    with pytest.raises(ExportError, match="no open batch axis"):
        write(tmp_path, encoder=encoder, decoder=decoder)


@pytest.mark.parametrize("name", ["", "../up", "a b", ".hidden"])
def test_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match="model name"):
        write(tmp_path, name)


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(ExportError, match="not an ONNX file"):
        parsed(b"PK\x03\x04")
