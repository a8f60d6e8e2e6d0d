"""What to look at, and when to be woken: objectives, rules for Prometheus, dashboards."""
