"""Selection of the served model for a call; ``models`` are the engine's, by name."""

from __future__ import annotations

from collections.abc import Mapping

from samserve.errors import EmbeddingNotFound, InvalidRequest, ModelNotFound
from samserve.types import EmbeddingFacts, ModelInfo

Models = Mapping[str, ModelInfo]


def find(models: Models, name: str) -> ModelInfo:
    """Return a model by name; the empty name means the default.  Raises `ModelNotFound`."""
    if not name:
        return next(iter(models.values()))
    if name not in models:
        raise ModelNotFound(
            f"no model {name[:64]!r} is served; served models: {', '.join(models)}",
            metadata={"model": name[:64], "served": ",".join(models)},
        )
    return models[name]


def model_of(embedding_id: str, facts: EmbeddingFacts, models: Models) -> ModelInfo:
    """Return the model of an embedding.  Raises `EmbeddingNotFound` if it is no longer served."""
    model = models.get(facts.model_name)
    if model is None or not facts.computed_by(model):
        # A client that receives NOT_FOUND embeds again, with the model that is served now.
        raise EmbeddingNotFound(
            "the model of the embedding is no longer served; embed the image again",
            metadata={"embedding_id": embedding_id},
        )
    return model


def check_name(name: str, model: ModelInfo, models: Models) -> None:
    """Raise `InvalidRequest` if *name* is another model than that of the embedding."""
    if name and find(models, name) != model:
        raise InvalidRequest(
            "model",
            f"must be empty or {model.name!r}, the model of the embedding",
            metadata={"model": model.name},
        )
