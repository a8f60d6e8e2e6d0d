"""The values in docs/deploy.md and the chart's README exist and are valid."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from samserve.settings import load

from chart.paths import README_TEXT, VALUES
from tests.chart.rendered import render

ROOT = VALUES.parents[2]
PAGES = [README_TEXT, ROOT / "docs" / "deploy.md"]
BLOCKS = re.compile(r"^```yaml\n(.*?)^```", re.DOTALL | re.MULTILINE)
NAMES = re.compile(r"(?<![\w./-])[a-z][A-Za-z]*(?:\.[A-Za-z_]+)+(?![\w/])")
# Ends of file names and of Python names, which look like names of values.
OTHER_ENDS = (
    ".md",
    ".crt",
    ".key",
    ".yaml",
    ".toml",
    ".json",
    ".onnx",
    ".pbtxt",
    ".internal",
    ".txt",
    ".predict",
)

DEFAULTS = yaml.safe_load(VALUES.read_text())


def exists(name: str) -> bool:
    value: Any = DEFAULTS | {"config": load().model_dump()}
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_values_exist(page: Path) -> None:
    text = re.sub(r"\]\([^)]*\)", "]", page.read_text())
    named = {
        name
        for name in NAMES.findall(text)
        if name.split(".")[0] in DEFAULTS and not name.endswith(OTHER_ENDS)
    }

    assert len(named) > 10
    assert [name for name in sorted(named) if not exists(name)] == []


def test_example_values_are_valid() -> None:
    examples = [
        values
        for page in PAGES
        for block in BLOCKS.findall(page.read_text())
        if isinstance(values := yaml.safe_load(block), dict)
    ]

    assert len(examples) >= 2
    for values in examples:
        assert render(values)
