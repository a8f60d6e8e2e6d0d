"""Envoy on loopback, in front of one or several gateways."""
