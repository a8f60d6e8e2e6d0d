"""Scheduling: limits on concurrent work, fair queues, thread pools, single flight."""
