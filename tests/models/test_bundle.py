"""Graphs are grouped into models, and checked against their encoder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from samserve.app import default_repository
from samserve.errors import EngineUnavailable
from samserve.export.upgrade import upgrade
from samserve.models.digest import bundle_digest, graph_digests
from samserve.models.repository import MixedWeights, discover
from samserve.types import EmbeddingFacts, Size

from tests.engines.full_size import write_models
from tests.engines.weights import write_version
from tests.export.config_check import age, copied, only

NAME = "sam_tiny"


@pytest.fixture
def with_text(tmp_path: Path) -> Path:
    """The default model with a third graph, of a role that another version may support."""
    repository = copied(tmp_path)
    text = repository / f"{NAME}_text"
    shutil.copytree(repository / f"{NAME}_decoder", text)
    config = text / "config.pbtxt"
    config.write_text(
        config.read_text()
        .replace(f'name: "{NAME}_decoder"', f'name: "{NAME}_text"')
        .replace('string_value: "decoder"', 'string_value: "text"')
    )
    return repository


def test_additional_graph_is_found_by_its_role(with_text: Path) -> None:
    (upgraded,) = upgrade(with_text)
    model = only(with_text)

    assert list(model.graphs) == ["encoder", "decoder", "text"]
    assert model.graphs["text"] == with_text / f"{NAME}_text" / "1" / "model.onnx"
    assert model.info.digest == upgraded.digest == bundle_digest(graph_digests(model.graphs))
    assert model.info.digest != only(default_repository()).info.digest


@pytest.mark.parametrize("role", ["decoder", "text"])
def test_graph_of_another_encoder_is_rejected(with_text: Path, role: str) -> None:
    config = with_text / f"{NAME}_{role}" / "config.pbtxt"
    encoder = only(with_text).info.encoder_digest
    config.write_text(config.read_text().replace(encoder, "0" * 64))

    with pytest.raises(MixedWeights) as rejected:
        discover(with_text)
    assert str(rejected.value) == (
        f"'{NAME}_{role}' has other weights: this {role} belongs to the encoder 000000000000, "
        f"not to {encoder[:12]}"
    )


@pytest.mark.parametrize("first", ["encoder", "decoder"])
def test_partly_upgraded_model_is_rejected_with_the_upgrade_command(
    tmp_path: Path, first: str
) -> None:
    repository = copied(tmp_path)
    age(repository, NAME, stamped=True)
    # As if the command had been killed between the two folders.
    folder = f"{NAME}_{first}"
    shutil.copytree(default_repository() / folder, repository / folder, dirs_exist_ok=True)
    with pytest.raises(MixedWeights, match="only partly upgraded") as rejected:
        discover(repository)
    (model,) = upgrade(repository)

    assert str(rejected.value).endswith(f": samserve models upgrade {repository}")
    assert model.digest == model.before
    assert only(repository).info == only(default_repository()).info


def test_models_whose_names_have_a_common_prefix_are_distinguished(tmp_path: Path) -> None:
    names = ["sam", "sam_decoder", "sam_encoder"]
    for name in names:
        write_version(tmp_path, name, 1)
    found = {model.info.name: sorted(model.graphs) for model in discover(tmp_path)}

    assert found == {name: ["decoder", "encoder"] for name in names}


def test_embedding_belongs_to_its_encoder_and_not_to_a_decoder(tmp_path: Path) -> None:
    old = write_version(tmp_path, "x", 1)
    other_decoder = write_version(tmp_path, "x", 1, decoder=2)
    other_encoder = write_version(tmp_path, "x", 2, decoder=2)
    embedding = EmbeddingFacts.of(Size(3, 4), old)

    assert len({old.digest, other_decoder.digest, other_encoder.digest}) == 3
    assert embedding.computed_by(other_decoder)
    assert not embedding.computed_by(other_encoder)


def test_model_for_another_preprocessing_is_rejected(tmp_path: Path) -> None:
    repository = copied(tmp_path)
    config = repository / f"{NAME}_encoder" / "config.pbtxt"
    config.write_text(config.read_text().replace('"sam1-1"', '"sam1-0"'))

    with pytest.raises(EngineUnavailable, match="'sam1-0'; this version of samserve has 'sam1-1'"):
        discover(repository)


IMAGE_SIZE = '{ name: "image_size" data_type: TYPE_INT32 dims: [ 2 ] },'
HIGH_RES_0 = '{ name: "high_res_0" data_type: TYPE_FP16 dims: [ 32, 256, 256 ] },'
OTHER_TENSORS = {
    "additional input": ("sam2_encoder", "input [", f"input [ {IMAGE_SIZE}", "input 'image_size'"),
    "missing input": ("sam2_decoder", HIGH_RES_0, "", "the input 'high_res_0' is missing"),
    "another embedding": (
        *("sam_hq_decoder", "dims: [ 32, 256, 256 ]", "dims: [ 16, 256, 256 ]"),
        "the input 'hq_features' has the shape [16, 256, 256], not [32, 256, 256]",
    ),
    "no object score": (
        *("sam2_decoder", '"object_score_logits"', '"object_score"'),
        "the output 'object_score_logits' is missing",
    ),
    "too few masks": (
        *("sam_hq_decoder", "-1, 5, 256, 256", "-1, 4, 256, 256"),
        "the output 'low_res_logits' has the shape [-1, 4, 256, 256], not [-1, 5, 256, 256]",
    ),
    "another mask size": (
        *("sam2_decoder", '"256" } }', '"128" } }'),
        "the input 'mask_input' has the shape [-1, 256, 256], not [-1, 128, 128]",
    ),
}


@pytest.mark.parametrize("change", OTHER_TENSORS)
def test_graphs_without_the_tensors_of_their_family_are_rejected(
    tmp_path: Path, change: str
) -> None:
    graph, before, after, message = OTHER_TENSORS[change]
    family, _, role = graph.rpartition("_")
    write_models(tmp_path, family)
    replace(tmp_path / graph / "config.pbtxt", before, after)

    with pytest.raises(EngineUnavailable) as rejected:
        discover(tmp_path)
    text = f"the {role} of model {family!r} is not one of the family {family!r}: "
    assert str(rejected.value).startswith(text)
    assert str(rejected.value).endswith(message)


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("delta", "nan", "must be from 0 to 1000"),
        ("delta", "-0.05", "got -0.05 and 0.98"),
        ("delta", "1e300", "must be from 0 to 1000"),
        ("thresh", "inf", "thresh from 0 to 1; got 0.05 and inf"),
        ("thresh", "much", "could not convert string to float: 'much'"),
        ("thresh", "", "only one is set"),
    ],
)
def test_an_invalid_rule_of_stability_is_rejected(
    tmp_path: Path, parameter: str, value: str, message: str
) -> None:
    write_models(tmp_path, "sam2")
    before = {"delta": "0.05", "thresh": "0.98"}[parameter]
    config = tmp_path / "sam2_decoder" / "config.pbtxt"
    replace(config, f'{{ string_value: "{before}" }}', f'{{ string_value: "{value}" }}')

    with pytest.raises(EngineUnavailable, match="configuration of 'sam2_encoder'") as rejected:
        discover(tmp_path)
    assert message in str(rejected.value)


def replace(config: Path, before: str, after: str) -> None:
    text = config.read_text()
    assert before in text
    config.write_text(text.replace(before, after))
