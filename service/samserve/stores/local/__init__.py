"""The tier of this process: embeddings in its memory."""
