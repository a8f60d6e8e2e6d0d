"""What happens to every call, whatever transport brings it: limits, deadline, log and metrics."""
