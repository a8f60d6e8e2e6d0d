"""The gRPC door: requests in, answers and errors out."""
