"""Places where embeddings live, behind one port."""
