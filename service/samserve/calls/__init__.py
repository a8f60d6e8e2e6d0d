"""The processing of every call, independent of the transport: limits, deadline, log, metrics."""
