"""Embeddings in Redis or Valkey, shared by several servers."""
