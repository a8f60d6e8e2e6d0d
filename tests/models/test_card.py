"""Model cards are stored in the parameters of a configuration."""

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


def test_card_is_restored_from_its_parameters() -> None:
    card = from_parameters({**to_parameters(CARD), "family": "sam1"})

    assert card.parity == Parity(3, 75, 0.999888, 0.99, 0.0, 0.000207296)
    assert from_parameters(to_parameters(card)) == card
    assert card.source_revision == ""
    assert "source_revision" not in to_parameters(CARD)


def test_model_without_a_card_has_an_empty_one() -> None:
    assert from_parameters({"family": "sam1"}) == ModelCard()
    assert to_parameters(ModelCard()) == {}


@pytest.mark.parametrize(
    "text",
    [
        *("", "no figures", "[]", "null", "[" * 100_000, '{"images": 1}'),
        json.dumps({**asdict(PARITY), "prompts": "many"}),
        json.dumps({**asdict(PARITY), "prompts": 1 << 40}),
        json.dumps({**asdict(PARITY), "mean_iou": float("nan")}),
    ],
)
def test_invalid_figures_are_ignored(text: str) -> None:
    assert from_parameters({"parity": text, "source": "sam.pth"}) == ModelCard(source="sam.pth")


def test_card_with_former_names_of_figures_is_read() -> None:
    content = asdict(PARITY)
    content["pictures"] = content.pop("images")
    content["changed_choices"] = content.pop("best_mask_mismatch_ratio")

    assert from_parameters({"parity": json.dumps(content)}) == ModelCard(parity=PARITY)


def test_unknown_entries_of_a_newer_card_are_ignored() -> None:
    text = json.dumps({**asdict(PARITY), "p99_iou": 0.5})

    assert from_parameters({"parity": text, "colour": "blue"}) == ModelCard(parity=PARITY)
