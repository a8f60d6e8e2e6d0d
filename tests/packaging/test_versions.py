"""Supported Python versions are the same in all files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from samserve.cli import doctor

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CLASSIFIER = "Programming Language :: Python :: "


def classifier_versions() -> list[str]:
    """Return the Python versions of the classifiers."""
    return [text.removeprefix(CLASSIFIER) for text in PROJECT["classifiers"] if CLASSIFIER in text]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_oldest_python_version_is_consistent() -> None:
    oldest = classifier_versions()[0]

    assert PROJECT["requires-python"] == f">={oldest}"
    assert ".".join(map(str, doctor._OLDEST_PYTHON)) == oldest
    assert f"Python {', '.join(classifier_versions()[:-1])} or {classifier_versions()[-1]}" in read(
        "README.md"
    )
    assert f"Python {oldest} or newer is needed" in read("Makefile")
    assert f"sys.version_info < ({oldest.replace('.', ', ')})" in read("Makefile")


def test_readme_and_images_use_tested_python_versions() -> None:
    platforms = read("README.md").split("## Platforms")[1]
    tested, untested = re.split(r"not (?:been )?(?:tried|tested)", platforms, maxsplit=1)
    images = re.findall(r"(?m)^ARG PYTHON=(\d+\.\d+)", read("service/Dockerfile"))

    assert set(re.findall(r"\b3\.\d+\b", tested)) >= set(classifier_versions())
    assert images
    assert set(images) <= set(classifier_versions())
    assert not set(re.findall(r"\b3\.\d+\b", untested)) & set(classifier_versions())
