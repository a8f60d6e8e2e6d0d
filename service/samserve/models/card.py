"""Model cards, stored as parameters of a model's configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from samserve.types import ModelCard, Parity

TEXTS = tuple(field.name for field in fields(ModelCard) if field.name != "parity")
"""The facts that are plain text, by the names of their parameters."""

# In the cards of models that were exported before these figures were renamed.
_FORMER_NAMES = {"images": "pictures", "best_mask_mismatch_ratio": "changed_choices"}


def to_parameters(card: ModelCard) -> dict[str, str]:
    """Return the card's facts by name, without empty ones."""
    facts = {name: getattr(card, name) for name in TEXTS}
    if card.parity is not None:
        facts["parity"] = json.dumps(_rounded(card.parity))
    return {name: text for name, text in facts.items() if text}


def from_parameters(parameters: Mapping[str, str]) -> ModelCard:
    """Parse the result of `to_parameters`; unknown parameters are ignored.

    A card is informative only: invalid figures are ignored, and the model is served regardless.
    """
    texts: dict[str, Any] = {name: parameters[name] for name in TEXTS if name in parameters}
    return replace(ModelCard(**texts), parity=_parity(parameters.get("parity", "")))


def _parity(text: str) -> Parity | None:
    try:
        content = json.loads(text)
        figures = [_figure(content, field.name) for field in fields(Parity)]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not all(type(figure) in (int, float) and 0 <= figure < 1 << 31 for figure in figures):
        return None
    images, prompts, *rest = figures
    return Parity(int(images), int(prompts), *map(float, rest))


def _figure(content: dict[str, Any], name: str) -> Any:
    return content[name] if name in content else content[_FORMER_NAMES[name]]


def _rounded(parity: Parity) -> dict[str, Any]:
    """Return the figures by name, rounded to six significant digits."""
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in asdict(parity).items()
    }
