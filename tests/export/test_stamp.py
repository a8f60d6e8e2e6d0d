"""Graphs that output the digest of their encoder, and the upgrade of earlier exports."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from samserve.app import default_repository
from samserve.errors import EngineUnavailable
from samserve.export import onnx_file, stamp
from samserve.export.errors import ExportError
from samserve.export.staging import PREFIX
from samserve.export.triton_repository import Description, write_bundle
from samserve.export.upgrade import upgrade
from samserve.models.digest import (
    DIGEST_OUTPUT,
    bundle_digest,
    digest_words,
    graph_digests,
    stamp_bytes,
)
from samserve.models.repository import discover
from samserve.segmentation.ids import embedding_id
from samserve.types import EncodedImage

from tests.cli.conftest import Command, samserve
from tests.export import graphs
from tests.export.config_check import age, contents, copied, only, read_config

__all__ = ["samserve"]

NAME = "sam_tiny"
ROLES = ("encoder", "decoder")
PREVIOUS_ID = "6457483313eff7c109d84e55c696dd3bb87ee142ad0815a733ca14c9056e9a84"
OUTPUTS = {"encoder": ["image_embedding"], "decoder": ["low_res_logits", "predicted_iou"]}


def path_of(repository: Path, role: str, name: str = NAME) -> Path:
    return repository / f"{name}_{role}" / "1" / "model.onnx"


def feeds(role: str, batch: int) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(1)
    if role == "encoder":
        return {
            "image": numbers.integers(0, 256, (batch, 1024, 1024, 3), dtype=np.uint8),
            "image_size": np.full((batch, 2), 1024, np.int32),
        }
    return {
        "image_embedding": numbers.normal(size=(batch, 256, 64, 64)).astype(np.float16),
        "point_coords": numbers.uniform(0, 1024, (batch, 2, 2, 2)).astype(np.float32),
        "point_labels": np.ones((batch, 2, 2), np.float32),
        "mask_input": np.zeros((batch, 0, 256, 256), np.float32),
    }


def aged(folder: Path, *, stamped: bool) -> Path:
    repository = copied(folder)
    age(repository, NAME, stamped=stamped)
    return repository


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A repository with the default model as exported before graphs had a digest output."""
    return aged(tmp_path, stamped=False)


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """A repository with the default model as exported when graphs output the model's digest."""
    return aged(tmp_path, stamped=True)


def digests(repository: Path) -> tuple[str, str]:
    """Return the digest of the default model, and that of its encoder."""
    graphs = graph_digests({role: path_of(repository, role) for role in ROLES})
    return bundle_digest(graphs), graphs["encoder"]


@pytest.mark.parametrize("form", ["old", "previous"])
@pytest.mark.parametrize("role", ROLES)
def test_an_upgraded_graph_outputs_the_encoder_digest_and_is_otherwise_unchanged(
    role: str, form: str, request: pytest.FixtureRequest
) -> None:
    old: Path = request.getfixturevalue(form)
    before = ort.InferenceSession(path_of(old, role))
    inputs = feeds(role, 1)
    expected = before.run(OUTPUTS[role], inputs)
    upgrade(old)
    after = ort.InferenceSession(path_of(old, role))
    found = after.run(OUTPUTS[role], inputs)
    # Without running the network, which takes seconds.
    only_digest = ort.RunOptions()
    only_digest.only_execute_path_to_fetches = True
    (digest,) = after.run([DIGEST_OUTPUT], feeds(role, 2), only_digest)

    assert all(np.array_equal(ours, right) for ours, right in zip(found, expected, strict=True))
    assert [row.tobytes() for row in digest] == [digest_words(digests(old)[1])] * 2
    onnx.checker.check_model(onnx.load(path_of(old, role)), full_check=True)


def test_a_repository_is_rejected_until_it_is_upgraded_and_keeps_its_digest(
    old: Path, samserve: Command
) -> None:
    digest, encoder = digests(old)
    with pytest.raises(EngineUnavailable, match="samserve models upgrade") as error:
        discover(old)
    command = str(error.value).partition(": samserve ")[2].split()
    result = samserve(*command)
    upgraded = contents(old)
    again = samserve(*command)

    assert f"'{NAME}'" in str(error.value)
    assert (result.code, result.out) == (0, f"{NAME}: upgraded, digest {digest}\n")
    assert (again.code, again.out) == (0, f"{NAME}: already up to date, digest {digest}\n")
    assert contents(old) == upgraded
    assert (only(old).info.digest, only(old).info.encoder_digest) == (digest, encoder)
    # Equal to a current export, without any additional files.
    assert upgraded == contents(default_repository())
    assert [path.name for path in old.parent.iterdir()] == ["models"]


def test_models_of_the_previous_export_keep_their_embedding_ids_until_upgraded(
    previous: Path,
) -> None:
    image = EncodedImage(bytes(range(256)) * 3)
    before = only(previous).info
    (model,) = upgrade(previous)
    after = only(previous).info

    assert before.encoder_digest == before.digest == after.digest == model.digest
    # The id of the previous version.
    assert embedding_id(image, before) == PREVIOUS_ID
    assert embedding_id(image, after) != PREVIOUS_ID
    assert contents(previous) == contents(default_repository())


def test_a_new_decoder_of_the_same_encoder_needs_no_upgrade(tmp_path: Path) -> None:
    repository = copied(tmp_path)
    decoder = onnx.load(path_of(repository, "decoder"))
    decoder.doc_string = "other weights"
    models = {"encoder": onnx.load(path_of(repository, "encoder")), "decoder": decoder}
    write_bundle(tmp_path / "new", NAME, models, Description("new"))
    shutil.rmtree(repository / f"{NAME}_decoder")
    shutil.copytree(tmp_path / "new" / f"{NAME}_decoder", repository / f"{NAME}_decoder")
    (model,) = upgrade(repository)

    assert not model.changed
    assert (only(repository).info.digest, only(repository).info.encoder_digest) == (
        digests(repository)
    )
    assert only(repository).info.digest != only(default_repository()).info.digest
    assert digests(repository)[1] == digests(default_repository())[1]


def test_the_text_of_an_edited_configuration_is_kept(old: Path) -> None:
    config = old / f"{NAME}_decoder" / "config.pbtxt"
    text = (
        config.read_text()
        .replace("output [\n", "# Edited.\noutput: [\n")
        .replace("\n]\n# No kind", " ]\n# No kind")
        .replace('parameters { key: "samserve.digest"', 'parameters: { key: "samserve.digest"')
    )
    config.write_text(text)
    upgrade(old)

    assert config.read_text().startswith(text.rstrip())
    names = [output.name for output in read_config(config.parent).output]
    assert names == ["low_res_logits", "predicted_iou", DIGEST_OUTPUT]
    assert only(old).info.name == NAME


def test_external_weights_are_linked_and_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file.save, "__kwdefaults__", {"max_bytes": 1_000_000})
    models = {role: onnx.load(path_of(default_repository(), role)) for role in ROLES}
    write_bundle(tmp_path / "models", NAME, models, Description("split"))
    digest = only(tmp_path / "models").info.digest
    age(tmp_path / "models", NAME)
    weights = only_data(tmp_path / "models")
    (model,) = upgrade(tmp_path / "models")

    assert (model.digest, model.before, model.changed) == (digest, digest, True)
    assert only_data(tmp_path / "models") == weights
    ort.InferenceSession(path_of(tmp_path / "models", "decoder"))


def only_data(repository: Path) -> list[int]:
    """Return the inodes of the external weights."""
    return sorted(path.stat().st_ino for path in repository.rglob("model.onnx.data"))


def test_changed_files_get_a_new_digest(old: Path) -> None:
    before = only_digest(old)
    path = path_of(old, "decoder")
    model = onnx.load(path)
    model.doc_string = "other weights"
    path.write_bytes(onnx_file.serialized(model))
    (changed,) = upgrade(old)

    assert (changed.before, changed.changed) == (before, True)
    assert changed.digest != before
    assert only(old).info.digest == changed.digest


def only_digest(repository: Path) -> str:
    config = read_config(repository / f"{NAME}_encoder")
    return str(config.parameters["samserve.digest"].string_value)


def test_a_graph_rewritten_by_another_program_is_stamped_again(tmp_path: Path) -> None:
    repository = copied(tmp_path)
    before = contents(repository)
    for role in ROLES:
        path = path_of(repository, role)
        path.write_bytes(onnx_file.serialized(onnx.load(path)))
        assert stamp_bytes(path) == 0
    (model,) = upgrade(repository)

    assert model.changed
    assert contents(repository) == before


def test_an_exchanged_encoder_gives_a_consistent_model(tmp_path: Path) -> None:
    for name in ("one", "two"):
        encoder = graphs.encoder()
        encoder.doc_string = name
        models = {"encoder": encoder, "decoder": graphs.decoder()}
        write_bundle(tmp_path, name, models, Description(name))
    shutil.copy(path_of(tmp_path, "encoder", "two"), path_of(tmp_path, "encoder", "one"))
    one, two = upgrade(tmp_path)

    assert (one.changed, two.changed) == (True, False)
    # The decoders are the same.
    assert one.digest == two.digest != one.before


def test_a_failed_upgrade_leaves_the_repository_unchanged(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(old)
    config = old / f"{NAME}_decoder" / "config.pbtxt"
    config.write_text(config.read_text().replace("samserve.digest", "samserve.other"))
    changed = contents(old)
    with pytest.raises(ExportError, match=r"sam_tiny_decoder: the parameter samserve\.digest"):
        upgrade(old)

    assert contents(old) == changed != before
    assert [path.name for path in old.parent.iterdir()] == ["models"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: shutil.rmtree(folder / f"{NAME}_decoder"),
            "the decoder of model",
        ),
        (lambda folder: shutil.rmtree(folder / f"{NAME}_encoder"), "no model of samserve"),
        (lambda folder: path_of(folder, "encoder").write_bytes(b"PK\x03\x04"), "cannot be read"),
        (lambda folder: path_of(folder, "encoder").unlink(), "cannot be read: No such file"),
        (lambda folder: path_of(folder, "encoder").write_bytes(b""), "a graph has no input"),
        (
            lambda folder: (folder / f"{NAME}_encoder" / "config.pbtxt").write_text("{"),
            "is not a model configuration",
        ),
    ],
    ids=["no decoder", "no encoder", "no graph", "no file", "empty file", "no configuration"],
)
def test_a_model_that_cannot_be_upgraded_is_reported_in_one_line(
    old: Path, damage: object, message: str, samserve: Command
) -> None:
    damage(old)  # type: ignore[operator]  # it is a function
    result = samserve("models", "upgrade", str(old))

    assert result.code == 1
    assert message in result.err.splitlines()[-1]
    assert PREFIX not in result.err
    assert "Traceback" not in result.err


def test_a_graph_cannot_be_stamped_twice(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_file.serialized(graphs.encoder()))
    stamp.stamp(path, "ab" * 32)

    assert stamp.is_stamped(path, "ab" * 32)
    assert not stamp.is_stamped(path, "cd" * 32)
    with pytest.raises(ExportError, match="already"):
        stamp.stamp(path, "ab" * 32)
