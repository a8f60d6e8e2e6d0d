"""Checks that a result was computed by the expected encoder."""

from __future__ import annotations

from samserve.errors import WeightsChanged
from samserve.models.digest import digest_words
from samserve.types import Array, EmbeddingFacts


def weights_changed(model: str) -> WeightsChanged:
    """Build the error; the text is the same wherever the change is detected."""
    return WeightsChanged(f"the weights of model {model!r} are being replaced; try again")


def check_weights(reported: Array, facts: EmbeddingFacts) -> None:
    """Compare the digest that a run *reported*, int32 ``[8]``, with the encoder of an embedding.

    Raises `WeightsChanged` if the run produced, or expects, embeddings of another encoder.
    """
    if reported.tobytes() != digest_words(facts.encoder_digest):
        raise weights_changed(facts.model_name)
