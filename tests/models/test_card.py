"""Model cards travel in the parameters of a configuration."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from samserve.models.card import from_parameters, to_parameters
from samserve.types import ModelCard, Parity

PARITY = Parity(3, 75, 0.99988842010498, 0.99, 0.0, 2.072955e-4)
CARD = ModelCard(
    variant="vit_b",
    source="sam.pth",
    source_sha256="00ff",
    source_format="original, float32",
    precision="fp16",
    exporter="samserve",
    parity=PARITY,
)


def test_a_card_survives_its_parameters() -> None:
    found = from_parameters({**to_parameters(CARD), "family": "sam1"})

    assert found.parity == Parity(3, 75, 0.999888, 0.99, 0.0, 0.000207296)
    assert from_parameters(to_parameters(found)) == found
    assert found.source_revision == ""
    assert "source_revision" not in to_parameters(CARD)


def test_a_model_without_a_card_has_an_empty_one() -> None:
    assert from_parameters({"family": "sam1"}) == ModelCard()
    assert to_parameters(ModelCard()) == {}


@pytest.mark.parametrize(
    "text",
    [
        *("", "no figures", "[]", "null", "[" * 100_000, '{"pictures": 1}'),
        json.dumps({**asdict(PARITY), "prompts": "many"}),
        json.dumps({**asdict(PARITY), "prompts": 1 << 40}),
        json.dumps({**asdict(PARITY), "mean_iou": float("nan")}),
    ],
)
def test_figures_that_are_none_are_left_out(text: str) -> None:
    assert from_parameters({"parity": text, "source": "sam.pth"}) == ModelCard(source="sam.pth")


def test_a_newer_card_is_read_as_far_as_it_is_known() -> None:
    text = json.dumps({**asdict(PARITY), "p99_iou": 0.5})

    assert from_parameters({"parity": text, "colour": "blue"}) == ModelCard(parity=PARITY)
