"""Service level objectives, recording rules and alerts for Prometheus, Grafana dashboards."""
