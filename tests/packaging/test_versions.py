"""The Pythons that we name are the same wherever we name them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from samserve.cli import doctor

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CLASSIFIER = "Programming Language :: Python :: "


def classified() -> list[str]:
    """The versions of the classifiers."""
    return [text.removeprefix(CLASSIFIER) for text in PROJECT["classifiers"] if CLASSIFIER in text]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_oldest_python_is_the_same_everywhere() -> None:
    oldest = classified()[0]

    assert PROJECT["requires-python"] == f">={oldest}"
    assert ".".join(map(str, doctor._OLDEST_PYTHON)) == oldest
    assert f"Python {', '.join(classified()[:-1])} or {classified()[-1]}" in read("README.md")
    assert f"Python {oldest} or newer is needed" in read("Makefile")
    assert f"sys.version_info < ({oldest.replace('.', ', ')})" in read("Makefile")


def test_the_readme_and_the_images_name_pythons_that_were_tried() -> None:
    platforms = read("README.md").split("## Platforms")[1]
    tried, _, untried = platforms.partition("not been tried")
    images = re.findall(r"(?m)^ARG PYTHON=(\d+\.\d+)", read("service/Dockerfile"))

    assert set(re.findall(r"\b3\.\d+\b", tried)) >= set(classified())
    assert images
    assert set(images) <= set(classified())
    assert not set(re.findall(r"\b3\.\d+\b", untried)) & set(classified())
