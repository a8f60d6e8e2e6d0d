"""Which of the served models a call means; ``models`` are those of the engine, by name."""

from __future__ import annotations

from collections.abc import Mapping

from samserve.errors import EmbeddingNotFound, InvalidRequest, ModelNotFound
from samserve.types import EmbeddingFacts, ModelInfo

Models = Mapping[str, ModelInfo]


def find(models: Models, name: str) -> ModelInfo:
    """Find a model; the empty name means the default.  Raises `ModelNotFound`."""
    if not name:
        return next(iter(models.values()))
    if name not in models:
        raise ModelNotFound(
            f"no model {name[:64]!r} is served; there are: {', '.join(models)}",
            metadata={"model": name[:64], "served": ",".join(models)},
        )
    return models[name]


def maker_of(embedding_id: str, facts: EmbeddingFacts, models: Models) -> ModelInfo:
    """Find the model that made an embedding.  Raises `EmbeddingNotFound` if it is gone."""
    model = models.get(facts.model_name)
    if model is None or not facts.made_by(model):
        # A client that gets a miss embeds again, with the model that is there now.
        raise EmbeddingNotFound(
            "the model that made the embedding is not served any more; embed again",
            metadata={"embedding_id": embedding_id},
        )
    return model


def check_name(name: str, model: ModelInfo, models: Models) -> None:
    """Raise `InvalidRequest` if the caller has named another model than made the embedding."""
    if name and find(models, name) != model:
        raise InvalidRequest(
            "model",
            f"the embedding was made by {model.name!r}; leave this empty",
            metadata={"model": model.name},
        )
