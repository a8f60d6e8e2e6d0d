"""The connection to a Redis Cluster: routing, nodes, credentials."""
