"""The embedding cache: a port, and its implementations in two tiers."""
