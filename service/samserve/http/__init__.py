"""The optional HTTP listener: Connect, gRPC-Web and JSON for the same service, and downloads."""
