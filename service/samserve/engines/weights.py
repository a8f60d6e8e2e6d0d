"""Whether an answer belongs to the encoder that it was asked of."""

from __future__ import annotations

from samserve.errors import WeightsChanged
from samserve.models.digest import digest_words
from samserve.types import Array, EmbeddingFacts


def weights_changed(model: str) -> WeightsChanged:
    """Build the error: one text, wherever it is found out."""
    return WeightsChanged(f"the weights of model {model!r} are being replaced; try again")


def check_weights(said: Array, facts: EmbeddingFacts) -> None:
    """Compare the encoder that a run *said*, int32 ``[8]``, with the encoder of an embedding.

    Raises `WeightsChanged` if the run made, or takes, embeddings of another encoder.
    """
    if said.tobytes() != digest_words(facts.encoder_digest):
        raise weights_changed(facts.model_name)
