"""The local tier: embeddings in the memory of this process."""
