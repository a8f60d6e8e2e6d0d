"""`samserve bridge`: annotation tools call it over HTTP, and it calls gateways over gRPC."""
