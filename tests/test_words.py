"""`scripts/check-words` finds words out of the glossary, and no others."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

FOUND = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "check-words"))["found"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("decodes a picture", "picture"),
        ("def read_pictures(paths):", "pictures"),
        ("the node is left alone", "left alone"),
        ("log(nodes_away=nodes)", "nodes away"),
        ("while Triton is away", "is away"),
        ("the file is not in order", "is not in order"),
        ("what clients are told", "are told"),
        ("def test_nobody_waits():", "nobody"),
        ('    """Give the size."""', '"""Give '),
        ("    def _tell(self):", "def  tell"),
    ],
)
def test_word_in_its_wrong_context_is_found(text: str, words: str) -> None:
    found = FOUND(f"fine\n{text}\n")

    assert [(line, match) for line, match, _ in found] == [(2, words)]


@pytest.mark.parametrize(
    "text",
    [
        "masks are returned in order of their prompts",
        "in order to save memory",
        "three points away from the edge",
        "a shallow copy",
        "the look of a page",
        '"""Given an image, return masks."""',
        "a client asks for a mask",
    ],
)
def test_word_in_another_context_is_not_found(text: str) -> None:
    assert FOUND(text) == []
