"""Authentication by certificates, API keys and tokens; authorization and quotas by the policy."""
