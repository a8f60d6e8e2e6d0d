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
    """Return the card's facts by name; what is empty is left out."""
    facts = {name: getattr(card, name) for name in TEXTS}
    if card.parity is not None:
        facts["parity"] = json.dumps(_rounded(card.parity))
    return {name: text for name, text in facts.items() if text}


def from_parameters(parameters: Mapping[str, str]) -> ModelCard:
    """Undo `to_parameters`, passing over what is not known.

    A card informs; what is not a figure is left out, and the model is served all the same.
    """
    texts: dict[str, Any] = {name: parameters[name] for name in TEXTS if name in parameters}
    return replace(ModelCard(**texts), parity=_parity(parameters.get("parity", "")))


def _parity(text: str) -> Parity | None:
    try:
        content = json.loads(text)
        figures = [content[field.name] for field in fields(Parity)]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not all(type(figure) in (int, float) and 0 <= figure < 1 << 31 for figure in figures):
        return None
    pictures, prompts, *rest = figures
    return Parity(int(pictures), int(prompts), *map(float, rest))


def _rounded(parity: Parity) -> dict[str, Any]:
    """Return the figures by name, to as many digits as mean something."""
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in asdict(parity).items()
    }
