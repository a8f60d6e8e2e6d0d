"""Authentication, authorization, quotas, TLS and hostile clients."""
