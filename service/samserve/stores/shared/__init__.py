"""The tier that gateways share: embeddings in a Redis or Valkey Cluster."""
