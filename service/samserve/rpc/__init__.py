"""The gRPC API: requests in, responses and errors out."""
