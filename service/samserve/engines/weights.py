"""Whether an answer is of the weights that it was asked of."""

from __future__ import annotations

from samserve.errors import WeightsChanged
from samserve.models.digest import digest_words
from samserve.types import Array, EmbeddingFacts


def weights_changed(model: str) -> WeightsChanged:
    """Build the error: one text, wherever it is found out."""
    return WeightsChanged(f"the weights of model {model!r} are being replaced; try again")


def check_weights(said: Array, facts: EmbeddingFacts) -> None:
    """Compare what a run has *said*, int32 ``[8]``, with the digest of an embedding.

    Raises `WeightsChanged` if other weights have made the embedding, or the answer.
    """
    if said.tobytes() != digest_words(facts.model_digest):
        raise weights_changed(facts.model_name)
