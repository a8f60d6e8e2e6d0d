"""Snippets, settings and options in the documentation are valid and complete."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from samserve.cli.main import main
from samserve.models import families
from samserve.models.families.base import PAD_LABEL, Family
from samserve.settings import SharedCacheSettings, TritonSettings
from tritonclient.grpc import model_config_pb2

ROOT = Path(__file__).parents[1]
FAMILIES = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
TRITON = (ROOT / "docs" / "triton.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```protobuf\n(.*?)```", TRITON, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS)
@pytest.mark.parametrize("model", ["sam_tiny_encoder", "sam_tiny_decoder"])
def test_triton_configuration_snippets_can_be_merged(snippet: str, model: str) -> None:
    text = (ROOT / "model_repository" / model / "config.pbtxt").read_text(encoding="utf-8")
    change = text_format.Parse(snippet, model_config_pb2.ModelConfig())
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    if change.instance_group:
        config.ClearField("instance_group")
    config.MergeFrom(change)

    assert change.ListFields()
    assert text_format.Parse(text_format.MessageToString(config), type(config)()) == config


def test_snippets_cover_tensorrt_and_gpus() -> None:
    assert len(SNIPPETS) == 3
    assert "tensorrt" in "".join(SNIPPETS)
    assert "gpus" in "".join(SNIPPETS)


def facts_of(name: str) -> dict[str, str]:
    """Return the column of a family in the first table of its page, by the name of the row."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in FAMILIES.split("\n\n")[2].splitlines()
    ]
    column = rows[0].index(f"`{name}`")
    return {row[0]: row[column] for row in rows}


@pytest.mark.parametrize("family", families.FAMILIES.values(), ids=lambda family: family.name)
def test_table_of_families_is_correct(family: Family) -> None:
    facts = facts_of(family.name)

    def yes(condition: bool) -> str:
        return "yes" if condition else "no"

    assert facts["image in the model frame"] == ("stretched" if family.fills_frame else "padded")
    assert facts["mask tokens"] == str(family.mask_tokens)
    assert facts["object score"] == yes(family.object_score)
    assert facts["`hq_mode`"] == yes(family.capabilities.hq_mode)
    _, labels = family.prompt(np.zeros((0, 2)), [], np.zeros(4))
    padded = PAD_LABEL in labels
    assert facts["box prompts"] == f"{'with' if padded else 'without'} padding point"
    threshold = facts["AutoMask: predicted IoU above"]
    assert threshold == str(family.automask.pred_iou_thresh)


def test_every_setting_of_triton_is_documented() -> None:
    table = TRITON.split("## Settings")[1]

    for name in TritonSettings.model_fields:
        assert f"`triton.{name}`" in table or f"`.{name}`" in table, name


def test_every_setting_of_the_cache_is_documented() -> None:
    text = (ROOT / "docs" / "cache.md").read_text(encoding="utf-8")

    for name in SharedCacheSettings.model_fields:
        assert f"`cache.shared.{name}`" in text or f"`.{name}`" in text, name


def test_documented_export_options_exist(
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = [ROOT / "README.md", ROOT / "docs" / "models.md", ROOT / "docs" / "triton.md"]
    named = set()
    for path in texts:
        text = path.read_text(encoding="utf-8")
        # Options of other programs, such as the benchmarks, are excluded.
        lines = re.sub(r"`python -m [^`]*`", "", text).splitlines()
        relevant = [line for line in lines if "samserve export" in line or "models pull" in line]
        relevant += lines if path.name == "models.md" else []
        named |= set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", "\n".join(relevant)))
    existing = set()
    commands = (("export",), ("models",), ("models", "pull"), ("models", "default"), ("serve",))
    for command in commands:
        assert main([*command, "--help"]) == 0
        existing |= set(re.findall(r"--[a-z][a-z0-9-]+", capsys.readouterr().out))

    assert len(named) > 10
    assert named <= existing
