"""The shared tier: embeddings in a Redis or Valkey Cluster that all gateways use."""
