"""The whole system on one machine under load, to observe its dashboards and alerts."""
