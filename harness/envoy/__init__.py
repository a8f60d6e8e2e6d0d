"""The real Envoy on loopback, before several gateways."""
