"""The committed files under model_repository/ are consistent."""

from __future__ import annotations

from pathlib import Path

import pytest
from samserve.export.onnx_file import parsed
from samserve.export.triton_repository import Description, write_bundle
from samserve.models.card import to_parameters
from samserve.models.digest import bundle_digest, graph_digests
from samserve.models.repository import discover

from tests.export import config_check

REPOSITORY = Path(__file__).parents[2] / "model_repository"


@pytest.mark.parametrize("model", ["sam_tiny_encoder", "sam_tiny_decoder"])
def test_configurations_match_the_inputs_and_outputs_of_their_graphs(model: str) -> None:
    config = config_check.read_config(REPOSITORY / model)
    graph = config_check.read_graph(REPOSITORY / model)

    assert config_check.declared(config.input) == config_check.actual(graph.graph.input)
    assert config_check.declared(config.output) == config_check.actual(graph.graph.output)
    assert (config.name, config.backend) == (model, "onnxruntime")
    assert [opset.version for opset in graph.opset_import if not opset.domain] == [17]


def test_model_has_the_digests_of_its_files_and_the_tensors_of_sam() -> None:
    (files,) = discover(REPOSITORY)

    digests = graph_digests(files.graphs)
    assert files.info.digest == bundle_digest(digests)
    assert files.info.encoder_digest == digests["encoder"]
    assert (files.info.name, files.info.family) == ("sam_tiny", "sam1")
    assert (files.info.image_size, files.info.mask_size) == (1024, 256)
    assert [(spec.name, spec.dtype.name, spec.shape) for spec in files.info.embedding] == [
        ("image_embedding", "float16", (256, 64, 64))
    ]


def test_default_model_is_at_most_16_mib() -> None:
    (files,) = discover(REPOSITORY)

    assert sum(path.stat().st_size for path in files.graphs.values()) <= 16 << 20


def test_configurations_equal_the_current_output_of_the_export(tmp_path: Path) -> None:
    (files,) = discover(REPOSITORY)

    models = {role: parsed(path.read_bytes()) for role, path in files.graphs.items()}
    description = Description(files.info.description, parameters=to_parameters(files.info.card))
    write_bundle(tmp_path, files.info.name, models, description)

    for role in ("encoder", "decoder"):
        config = Path(f"{files.info.name}_{role}") / "config.pbtxt"
        assert (REPOSITORY / config).read_text() == (tmp_path / config).read_text()
