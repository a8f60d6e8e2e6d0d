"""Model cards as the parameters of a model's configuration, which is how they travel with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from samserve.types import ModelCard, Parity

TEXTS = tuple(field.name for field in fields(ModelCard) if field.name != "parity")
"""The facts that are plain text, by the names of their parameters."""


def to_parameters(card: ModelCard) -> dict[str, str]:
    """Give the card's facts by name; what is empty is left out."""
    facts = {name: getattr(card, name) for name in TEXTS}
    if card.parity is not None:
        facts["parity"] = json.dumps(_rounded(card.parity))
    return {name: text for name, text in facts.items() if text}


def from_parameters(parameters: Mapping[str, str]) -> ModelCard:
    """Undo `to_parameters`, passing over other parameters.

    Raises `ValueError` for figures that are none.
    """
    texts: dict[str, Any] = {name: parameters[name] for name in TEXTS if name in parameters}
    card = ModelCard(**texts)
    if "parity" not in parameters:
        return card
    try:
        return replace(card, parity=Parity(**json.loads(parameters["parity"])))
    except TypeError as error:
        raise ValueError(f"parity: {error}") from error


def _rounded(parity: Parity) -> dict[str, Any]:
    """Give the figures by name, to as many digits as mean something."""
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in asdict(parity).items()
    }
