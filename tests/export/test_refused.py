"""Checkpoints that must be refused, of every family: one clear line, and no code of theirs runs."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from samserve.export.checkpoint import open_network
from samserve.export.errors import ExportError
from samserve.export.families import load
from samserve.export.sources.source import Checkpoint
from torch import Tensor

from tests.oracle import edgetam, huggingface, meta_sam2, sam2, sam_hq
from tests.oracle.sam import SMALL, original
from tests.support.cases import check_all

State = Mapping[str, Tensor]

SUPPORTED = "supported are SAM, MobileSAM, SAM-HQ, SAM 2, SAM 2.1 and EdgeTAM"


@dataclass(frozen=True)
class Valid:
    """A checkpoint that is not refused, the title of its family and the name of one tensor."""

    checkpoint: Checkpoint
    title: str
    tensor: str


def configured(model: Any, title: str, tensor: str) -> Valid:
    """Return the checkpoint of a model of the transformers library."""
    return Valid(Checkpoint(model.state_dict(), model.config.to_dict()), title, tensor)


def meta_sam2_checkpoint() -> Valid:
    """Return Meta's names at a size that is not published, which only a configuration has."""
    config = {**sam2.config(sam2.TOY).to_dict(), "model_type": "sam2"}
    tensor = "sam_mask_decoder.iou_token.weight"
    return Valid(Checkpoint(meta_sam2.build().state_dict(), config), "SAM 2", tensor)


TOKEN = "mask_decoder.iou_token.weight"

MAKERS: dict[str, Callable[[], Valid]] = {
    "sam": lambda: Valid(Checkpoint(original(SMALL).state_dict()), "SAM", TOKEN),
    "sam_hq": lambda: Valid(Checkpoint(sam_hq.original(sam_hq.TOY).state_dict()), "SAM-HQ", TOKEN),
    "sam2": meta_sam2_checkpoint,
    "library's sam": lambda: configured(huggingface.model(SMALL, 256), "SAM", TOKEN),
    "library's sam_hq": lambda: configured(
        sam_hq.library(sam_hq.TOY, sam_hq.original(sam_hq.TOY).state_dict()), "SAM-HQ", TOKEN
    ),
    "library's sam2": lambda: configured(sam2.model(), "SAM 2", TOKEN),
    "library's edgetam": lambda: configured(edgetam.model(8, 32), "EdgeTAM", TOKEN),
}

EDGETAM = "library's edgetam"
"""Building its image encoder takes seconds."""


def parameters(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name == EDGETAM)) for name in names]


every_checkpoint = pytest.mark.parametrize("name", parameters(MAKERS))
every_configuration = pytest.mark.parametrize(
    "name", parameters(name for name in MAKERS if name.startswith("library's"))
)


@cache
def valid(name: str) -> Valid:
    return MAKERS[name]()


def line(error: BaseException) -> str:
    text = str(error)
    assert text.isprintable()
    assert 10 < len(text) < 600
    return text


def refusal(tensors: State, config: Mapping[str, Any] | None) -> str:
    with pytest.raises(ExportError) as error:
        load(Checkpoint(dict(tensors), config))
    return line(error.value)


def file_refusal(path: Path) -> str:
    with pytest.raises(ExportError) as error:
        open_network(path)
    return line(error.value)


# --- tensors -------------------------------------------------------------------------------------


@every_checkpoint
def test_a_missing_unexpected_or_misshapen_tensor_is_named(name: str) -> None:
    made = valid(name)
    tensors, config = made.checkpoint.tensors, made.checkpoint.config
    token = tensors[made.tensor]
    without = {key: value for key, value in tensors.items() if key != made.tensor}
    extra = made.tensor.replace("iou_token", "token_of_another_model")

    assert load(made.checkpoint).title
    missing = refusal(without, config)
    assert missing.startswith("not a ")
    assert "missing" in missing
    assert "iou_token" in missing
    unexpected = refusal({**tensors, extra: token}, config)
    assert unexpected.startswith("not a ")
    assert "unexpected" in unexpected
    assert extra in unexpected
    shape = refusal({**without, made.tensor: token[:, 1:]}, config)
    assert "iou_token" in shape
    assert f"has shape (1, {token.shape[1] - 1}), not (1, {token.shape[1]})" in shape


@every_checkpoint
def test_adapters_and_optimizer_state_beside_the_weights_are_named(name: str) -> None:
    made = valid(name)
    tensors, config = made.checkpoint.tensors, made.checkpoint.config
    parent = made.tensor.removesuffix(".weight")

    adapters = refusal({**tensors, f"{parent}.lora_A.weight": torch.ones(1)}, config)
    optimizer = refusal({**tensors, "optimizer.exp_avg": torch.ones(1)}, config)

    assert adapters.startswith(f"this looks like a model with adapters or LoRA ({parent}.lora_A")
    assert adapters.endswith("merge them into the weights first")
    assert "optimizer.exp_avg" in optimizer


@every_checkpoint
def test_a_fine_tuned_checkpoint_with_prefixed_names_is_accepted_or_told_what_to_do(
    name: str,
) -> None:
    made = valid(name)
    config = made.checkpoint.config

    def prefixed(prefix: str) -> State:
        return {f"{prefix}{key}": value for key, value in made.checkpoint.tensors.items()}

    assert load(Checkpoint(dict(prefixed("module.model.")), config)).title
    assert refusal(prefixed("net.student."), config) == (
        "all names begin with 'net.student.': add --prefix net.student."
    )
    with_loss = {**prefixed("model."), "loss.weight": torch.ones(1)}
    assert refusal(with_loss, config) == (
        f"1 of {len(with_loss)} names lack 'model.', such as loss.weight: add --prefix model. "
        "to leave them out"
    )


@every_configuration
def test_the_weights_of_another_family_are_named(name: str) -> None:
    config = valid(name).checkpoint.config
    assert config is not None

    def check(other: str) -> None:
        found = valid(other)
        text = refusal(found.checkpoint.tensors, config)
        assert text == (
            f"config.json has the type {config['model_type']}, but the weights are those of "
            f"{found.title}"
        )

    title = valid(name).title
    others = [other for other in MAKERS if other != EDGETAM and valid(other).title != title]
    check_all(check, {other: other for other in others})


SAM_3 = {
    "detector.backbone.vision_backbone.trunk.blocks.0.attn.qkv.weight": 1,
    "detector.geometry_encoder.label_embed.weight": 1,
    "tracker.sam_mask_decoder.iou_token.weight": 1,
    "tracker.maskmem_backbone.fuser.layers.0.gamma": 1,
}
SAM_3_1 = {
    "detector.backbone.vision_backbone.interactive_convs.0.conv_1x1.weight": 1,
    "tracker.model.interactive_mask_decoder.iou_token.weight": 1,
    "tracker.model.interactive_prompt_encoder.no_mask_embed.weight": 1,
}


@pytest.mark.parametrize(
    ("names", "title"),
    [
        (SAM_3, "SAM 3 or SAM 3.1"),
        ({**SAM_3, **SAM_3_1}, "SAM 3.1"),
        # The click head of SAM 3.1 under the names of SAM 3's, as converters write it.
        (
            {key.replace("model.interactive_", "sam_"): 1 for key in SAM_3_1 if "mask" in key},
            "SAM 3 or SAM 3.1",
        ),
    ],
    ids=["sam3", "sam3.1", "sam3.1 under the names of sam3"],
)
def test_sam_3_and_3_1_are_refused(tmp_path: Path, names: dict[str, int], title: str) -> None:
    tensors = {key: torch.ones(size) for key, size in names.items()}
    torch.save({"model": tensors}, tmp_path / "sam3.pt")

    text = file_refusal(tmp_path / "sam3.pt")

    assert text.startswith(f"this looks like {title} (")
    assert text.endswith(SUPPORTED)


def test_the_click_head_of_sam_3_1_in_the_place_of_sam_2_is_refused() -> None:
    """With the names of its networks changed to those of SAM 2, it has another image encoder."""
    made = valid("sam2")
    kept = {key: value for key, value in made.checkpoint.tensors.items() if "trunk" not in key}
    trunk = {"image_encoder.trunk.blocks.0.attn.qkv.weight": torch.ones(1)}

    text = refusal({**kept, **trunk}, made.checkpoint.config)

    assert text.startswith("not a SAM 2")


# --- files ---------------------------------------------------------------------------------------


class Touch:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@every_checkpoint
def test_code_in_a_file_is_not_run(name: str, tmp_path: Path) -> None:
    tensors = valid(name).checkpoint.tensors
    few = dict(list(tensors.items())[:3])
    content = {"model": few, "optimizer": Touch(tmp_path / "trace")}
    torch.save(content, tmp_path / "zip.pth")
    torch.save(content, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.safetensors").write_bytes(pickle.dumps(content))

    for file in ("zip.pth", "legacy.pt", "bare.safetensors"):
        assert file_refusal(tmp_path / file).startswith(
            f"{file} is corrupt or contains something other than tensors; no code in it was run"
        )
    assert not (tmp_path / "trace").exists()
    torch.load(tmp_path / "zip.pth", weights_only=False)
    assert (tmp_path / "trace").exists()


@every_checkpoint
def test_a_truncated_file_is_refused(name: str, tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save(dict(valid(name).checkpoint.tensors), stream)
    content = stream.getvalue()

    for share in (0.1, 0.5, 0.999):
        (tmp_path / "sam.pth").write_bytes(content[: int(len(content) * share)])
        assert file_refusal(tmp_path / "sam.pth") == "sam.pth is corrupt or incomplete"


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sam.pth").write_text("<html>404: Not Found</html>")

    assert file_refusal(tmp_path / "sam.pth") == (
        "sam.pth is neither a PyTorch file nor a safetensors file"
    )


# --- configurations ------------------------------------------------------------------------------

ABSURD: dict[str, object] = {
    "negative": -1,
    "huge": 10**12,
    "not a number": float("nan"),
    "text": "big",
    "nested": [[[1]], {"a": -1}],
    "object": {"size": 1},
}


PARTS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")

UNUSED = {
    *("initializer_range", "chunk_size_feed_forward", "num_pos_feats", "scale", "num_classes"),
    *("attention_dropout", "label2id", "id2label"),
}
"""Numbers that networks for images do not depend on, and labels."""


_SAM2, _BACKBONE = ("SAM 2", "EdgeTAM"), "vision_config.backbone_config"

UNUSED_IN = {
    # SAM 2 has no norms in its neck.
    "vision_config.layer_norm_eps": _SAM2,
    # The width itself is a value too.
    "vision_config.mlp_ratio": ("SAM", "SAM-HQ"),
    # Each stage has its own, and a Hiera has no size.
    f"{_BACKBONE}.num_attention_heads": _SAM2,
    f"{_BACKBONE}.image_size": _SAM2,
}


def numbers(config: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the path of every size in a configuration."""
    for key, value in config.items():
        if key in UNUSED:
            continue
        if isinstance(value, dict):
            yield from numbers(value, (*path, key))
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, int | float | list) and not isinstance(first, bool):
            yield (*path, key)


def changed(config: Mapping[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    """Return a configuration with another value."""
    key, *rest = path
    return {**config, key: changed(config[key], tuple(rest), value) if rest else value}


@every_configuration
def test_an_absurd_value_in_a_configuration_is_named(name: str) -> None:
    made = valid(name)
    tensors, config = dict(made.checkpoint.tensors), made.checkpoint.config
    assert config is not None
    used = [path for part in PARTS for path in numbers(config[part], (part,))]
    used = [path for path in used if made.title not in UNUSED_IN.get(".".join(path), ())]
    assert len(used) > 20

    def check(path: tuple[str, ...]) -> None:
        for kind, value in ABSURD.items():
            text = refusal(tensors, changed(config, path, value))
            assert path[-1] in text, kind

    check_all(check, {".".join(path): path for path in used})


@every_configuration
def test_parts_of_a_configuration_of_a_wrong_type_are_named(name: str) -> None:
    made = valid(name)
    config = made.checkpoint.config
    assert config is not None

    for part in PARTS:
        for value in ([], "big", 3, True):
            assert part in refusal(made.checkpoint.tensors, {**config, part: value})


@every_configuration
def test_a_configuration_without_a_part_is_refused(name: str) -> None:
    """Its values would be those of a published size."""
    made = valid(name)
    config = dict(made.checkpoint.config or {})

    for part in PARTS:
        without = {key: value for key, value in config.items() if key != part}
        assert refusal(made.checkpoint.tensors, without) == f"config.json has no {part}"


def test_a_configuration_that_is_not_json_is_refused(tmp_path: Path) -> None:
    torch.save({"a.b": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    huge = '{"model_type": "sam2", "vision_config": {"image_size": ' + "9" * 5000 + "}}"
    cases = {
        "<html>": "config.json is not a JSON file",
        huge: "config.json is not a JSON file",
        '{"model_type": 5}': f"{tmp_path.name} has a model of the type 5; {SUPPORTED}",
    }

    for content, message in cases.items():
        (tmp_path / "config.json").write_text(content)
        assert file_refusal(tmp_path) == message


@pytest.mark.parametrize("kind", ["sam", "sam_hq"])
def test_an_image_encoder_narrower_than_one_head_is_one_line(kind: str) -> None:
    tensors = dict(MAKERS[kind]().checkpoint.tensors)
    tensors["image_encoder.patch_embed.proj.weight"] = torch.ones(1, 3, 16, 16)

    with pytest.raises(ExportError, match="do not have the shapes of a SAM"):
        load(Checkpoint(tensors))
