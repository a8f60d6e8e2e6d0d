"""The whole system on one machine, under load, for those who look at its dashboards and alerts."""
